//! What gateways say to each other, as bytes: protobuf that only gains fields. Whoever sends it seals it.

use crate::election::{Advert, Claim, Stance, Word};
use prost::Message as _;
use quorate_model::vip::VIPS_MAX;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest advert: of as many VIPs as there may be, with room for fields to come.
pub const ADVERT_MAX: usize = 64 * VIPS_MAX;

#[derive(Clone, PartialEq, prost::Message)]
struct WireAdvert {
    #[prost(message, repeated, tag = "1")]
    words: Vec<WireWord>,
    #[prost(fixed64, tag = "2")]
    run: u64,
    #[prost(uint64, tag = "3")]
    sequence: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireWord {
    /// 4 or 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    ip: Vec<u8>,
    /// 0: it does not hold it.
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(uint32, tag = "3")]
    witnesses: u32,
    #[prost(bool, tag = "4")]
    unfit: bool,
}

/// Why bytes are no advert.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadAdvert {
    #[error("it is not written as an advert")]
    Wire(#[from] prost::DecodeError),
    #[error("it speaks of more addresses than there may be")]
    TooMany,
    #[error("it speaks of an address that is none")]
    Address,
}

impl Advert {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let words = self.words.iter().map(|(ip, stance)| {
            let ip = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let (epoch, witnesses) = match stance {
                Stance::Holding(claim) => (claim.epoch, claim.witnesses),
                Stance::Standby | Stance::Unfit => (0, 0),
            };
            WireWord { ip, epoch, witnesses, unfit: *stance == Stance::Unfit }
        });
        WireAdvert { words: words.collect(), run: self.run, sequence: self.sequence }.encode_to_vec()
    }

    /// # Errors
    /// [`BadAdvert`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Advert, BadAdvert> {
        let wire = WireAdvert::decode(bytes)?;
        if wire.words.len() > VIPS_MAX {
            return Err(BadAdvert::TooMany);
        }
        let words: Result<Vec<Word>, BadAdvert> = wire.words.into_iter().map(word).collect();
        Ok(Advert { run: wire.run, sequence: wire.sequence, words: words? })
    }
}

fn word(wire: WireWord) -> Result<Word, BadAdvert> {
    let WireWord { ip, epoch, witnesses, unfit } = wire;
    let ip = match (<[u8; 4]>::try_from(ip.as_slice()), <[u8; 16]>::try_from(ip.as_slice())) {
        (Ok(octets), _) => IpAddr::from(Ipv4Addr::from(octets)),
        (_, Ok(octets)) => IpAddr::from(Ipv6Addr::from(octets)),
        _ => return Err(BadAdvert::Address),
    };
    let stance = match epoch {
        0 if unfit => Stance::Unfit,
        0 => Stance::Standby,
        epoch => Stance::Holding(Claim { epoch, witnesses }),
    };
    Ok((ip, stance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advert_is_read_as_it_was_written_and_fits_into_a_datagram() {
        let claim = Stance::Holding(Claim { epoch: u64::MAX, witnesses: u32::MAX });
        let stances = [claim, Stance::Standby, Stance::Unfit];
        let ip = |number: usize| IpAddr::from(Ipv6Addr::from(u128::MAX - number as u128));
        let mut words: Vec<Word> = (0..VIPS_MAX - 1).map(|number| (ip(number), stances[number % 3])).collect();
        words.push((IpAddr::from([10, 0, 0, 9]), claim));
        let advert = Advert { run: u64::MAX, sequence: u64::MAX, words };
        let bytes = advert.to_bytes();
        assert_eq!(Advert::from_bytes(&bytes).unwrap(), advert);
        assert!(bytes.len() < 1_300 && bytes.len() < ADVERT_MAX, "{} bytes", bytes.len());
    }

    #[test]
    fn any_bytes_are_an_advert_that_is_read_again_as_it_was_or_none() {
        use rand_chacha::ChaCha8Rng;
        use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let claim = Stance::Holding(Claim { epoch: 300, witnesses: 2 });
        let words = vec![(IpAddr::from([10, 0, 0, 9]), claim), (IpAddr::from([7; 16]), Stance::Unfit)];
        let whole = Advert { run: 7, sequence: 8, words }.to_bytes();
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..100_000 {
            let mut bytes = whole.clone();
            for _ in 0..=random.next_u32() % 3 {
                let at = random.next_u32() as usize % bytes.len();
                bytes[at] = random.next_u32() as u8;
            }
            bytes.truncate(bytes.len() - (random.next_u32() % 4) as usize);
            match Advert::from_bytes(&bytes) {
                Ok(advert) => {
                    assert_eq!(Advert::from_bytes(&advert.to_bytes()), Ok(advert));
                    taken += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(taken > 1_000 && refused > 1_000, "{taken} taken, {refused} refused");
    }

    #[test]
    fn what_is_no_advert_is_refused() {
        assert!(matches!(Advert::from_bytes(&[0xff; 9]), Err(BadAdvert::Wire(_))));
        let odd =
            WireAdvert { words: vec![WireWord { ip: vec![1; 5], ..WireWord::default() }], ..WireAdvert::default() };
        assert_eq!(Advert::from_bytes(&odd.encode_to_vec()), Err(BadAdvert::Address));
        let words = vec![WireWord { ip: vec![1; 4], ..WireWord::default() }; VIPS_MAX + 1];
        let many = WireAdvert { words, ..WireAdvert::default() };
        assert_eq!(Advert::from_bytes(&many.encode_to_vec()), Err(BadAdvert::TooMany));
    }
}
