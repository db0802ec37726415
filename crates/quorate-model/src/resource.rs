//! Processor time and memory: what a service asks for, what a node has, what a replica uses.
//!
//! A service asks for one number of each, which is both what is set aside for each of its replicas on the
//! node and what none of them gets beyond. Two numbers, as elsewhere, let a node promise more than it has,
//! and the promise is broken at the worst moment.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

/// Processor time in thousandths of one CPU, written `"500m"`, `"1.5"`, or as a number of CPUs.
///
/// 10m to 1024 CPUs: less than a hundredth is nothing that a kernel measures out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpu(u32);

impl Cpu {
    const MIN: u32 = 10;
    const MAX: u32 = 1_024_000;

    #[must_use]
    pub fn millis(self) -> u32 {
        self.0
    }
}

/// What is written for an amount of processor time or memory is none, or out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    #[error("`{0}` is no CPU time: write \"500m\" for half a CPU, or a number like 1.5; 10m to 1024")]
    Cpu(String),
    #[error("`{0}` is no amount of memory: write a number with a unit, like \"256MiB\" or \"2GiB\"; 1MiB to 64TiB")]
    Memory(String),
}

impl FromStr for Cpu {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Cpu, AmountError> {
        let millis = match text.strip_suffix('m') {
            Some(millis) => digits(millis),
            None => thousandths(text),
        };
        let fits = |millis: &u64| (u64::from(Cpu::MIN)..=u64::from(Cpu::MAX)).contains(millis);
        let millis = millis.filter(fits).and_then(|millis| u32::try_from(millis).ok());
        millis.map(Cpu).ok_or_else(|| AmountError::Cpu(text.to_owned()))
    }
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A number with at most three digits after the point, times a thousand.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    if rest.is_empty() || rest.len() > 3 {
        return None;
    }
    digits(whole)?.checked_mul(1000)?.checked_add(digits(&format!("{rest:0<3}"))?)
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        CpuMillis(self.0.into()).fmt(f)
    }
}

/// Processor time in words.
#[derive(Debug, Clone, Copy)]
pub struct CpuMillis(pub u64);

impl fmt::Display for CpuMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 && self.0.is_multiple_of(1000) {
            write!(f, "{}", self.0 / 1000)
        } else {
            write!(f, "{}m", self.0)
        }
    }
}

/// Memory in bytes, written with a unit: `"256MiB"`, `"2GiB"`, `"500MB"`. 1 MiB to 64 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(u64);

/// The larger ones first; those of two before those of ten, which look alike.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("B", 1),
];

impl Memory {
    const MIN: u64 = 1 << 20;
    const MAX: u64 = 64 << 40;

    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Memory {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Memory, AmountError> {
        let refused = || AmountError::Memory(text.to_owned());
        let unit = UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)));
        let (number, unit) = unit.ok_or_else(refused)?;
        let bytes = thousandths(number.trim_end()).and_then(|count| Some(count.checked_mul(unit)? / 1000));
        bytes.filter(|bytes| (Memory::MIN..=Memory::MAX).contains(bytes)).map(Memory).ok_or_else(refused)
    }
}

impl fmt::Display for Memory {
    /// Exactly, so that it reads as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().find(|(_, bytes)| self.0.is_multiple_of(*bytes));
        let (name, bytes) = exact.expect("every number of bytes is one of bytes");
        write!(f, "{}{name}", self.0 / bytes)
    }
}

impl Serialize for Cpu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Whole(u32),
            Broken(f64),
            Text(String),
        }
        let text = match Raw::deserialize(deserializer) {
            Ok(Raw::Whole(cpus)) => cpus.to_string(),
            Ok(Raw::Broken(cpus)) => cpus.to_string(),
            Ok(Raw::Text(text)) => text,
            Err(_) => String::new(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            // A number without a unit is refused with the same words.
            Number(u64),
            Text(String),
        }
        let text = match Raw::deserialize(deserializer) {
            Ok(Raw::Number(number)) => number.to_string(),
            Ok(Raw::Text(text)) => text,
            Err(_) => String::new(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What each replica of a service gets: set aside on its node, and never exceeded. Default: nothing is set
/// aside, and nothing is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processor time: `"500m"` is half a CPU, 1.5 is one and a half. 10m to 1024. A replica that wants more
    /// is slowed down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory, like `"256MiB"`. 1MiB to 64TiB. A replica that needs more is killed and started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

impl Resources {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Resources::default()
    }

    /// Of what there is a number.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.cpu.map(|_| "cpu"), self.memory.map(|_| "memory")].into_iter().flatten()
    }

    #[must_use]
    pub fn amount(&self) -> Amount {
        Amount {
            cpu_millis: self.cpu.map_or(0, |cpu| cpu.millis().into()),
            memory_bytes: self.memory.map_or(0, Memory::bytes),
        }
    }
}

/// Processor time and memory, of a node or of many replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amount {
    /// In thousandths of one CPU.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

impl Amount {
    /// So many times. What no number holds is as much as one does.
    #[must_use]
    pub fn times(self, count: u32) -> Amount {
        Amount {
            cpu_millis: self.cpu_millis.saturating_mul(count.into()),
            memory_bytes: self.memory_bytes.saturating_mul(count.into()),
        }
    }

    /// What is left of it; nothing, where more is taken than there is.
    #[must_use]
    pub fn without(self, taken: Amount) -> Amount {
        Amount {
            cpu_millis: self.cpu_millis.saturating_sub(taken.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(taken.memory_bytes),
        }
    }

    /// Whether as much of both is in `other`.
    #[must_use]
    pub fn fits(self, other: Amount) -> bool {
        self.cpu_millis <= other.cpu_millis && self.memory_bytes <= other.memory_bytes
    }
}

impl Add for Amount {
    type Output = Amount;

    fn add(self, other: Amount) -> Amount {
        Amount {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        *self = *self + other;
    }
}

/// `2 CPUs and 1.5GiB`, rounded.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU and {}", CpuMillis(self.cpu_millis), MemoryBytes(self.memory_bytes))
    }
}

/// Memory in words, rounded to tenths of the unit.
#[derive(Debug, Clone, Copy)]
pub struct MemoryBytes(pub u64);

impl fmt::Display for MemoryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS[..4].iter().find(|(_, bytes)| self.0 >= *bytes);
        let Some((name, bytes)) = unit else { return write!(f, "{}B", self.0) };
        let tenths = self.0 / (bytes / 128) * 10 / 128;
        if tenths.is_multiple_of(10) {
            write!(f, "{}{name}", tenths / 10)
        } else {
            write!(f, "{}.{}{name}", tenths / 10, tenths % 10)
        }
    }
}

/// What one replica uses, over the last interval of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// In thousandths of one CPU, rounded to 10.
    pub cpu_millis: u32,
    /// Without what the kernel could drop at once, rounded to 64 KiB. Absent where nothing measures it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Absent where the kernel does not measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

/// For how much of the last ten seconds something of a replica waited, in thousandths of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pressure {
    /// For a processor: others have it, or its own limit is reached.
    pub cpu_permille: u16,
    /// For memory that has to be read back or made free first.
    pub memory_permille: u16,
    /// For a disk.
    pub io_permille: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<String, String> {
        let read = serde_json::from_value::<Resources>(value).map_err(|error| error.to_string())?;
        Ok(serde_json::to_string(&read).unwrap())
    }

    #[test]
    fn resources_are_read_as_people_write_them_and_written_in_one_way() {
        assert_eq!(read(json!({"cpu": "500m", "memory": "256MiB"})).unwrap(), r#"{"cpu":"500m","memory":"256MiB"}"#);
        assert_eq!(read(json!({"cpu": 1.5})).unwrap(), r#"{"cpu":"1500m"}"#);
        assert_eq!(read(json!({"cpu": 2, "memory": "0.5GiB"})).unwrap(), r#"{"cpu":"2","memory":"512MiB"}"#);
        assert_eq!(read(json!({"cpu": "0.25", "memory": "2048 KiB"})).unwrap(), r#"{"cpu":"250m","memory":"2MiB"}"#);
        assert_eq!(read(json!({"memory": "500MB"})).unwrap(), r#"{"memory":"500MB"}"#);
        for written in ["10m", "1024", "1500m"] {
            assert_eq!(written.parse::<Cpu>().unwrap().to_string(), written);
        }
    }

    #[test]
    fn what_is_no_amount_is_refused_with_an_example() {
        for cpu in
            [json!("half"), json!(0), json!("9m"), json!(-1), json!("1.2345"), json!("1e3"), json!(1e9), json!([])]
        {
            let refused = read(json!({ "cpu": cpu })).unwrap_err();
            assert!(refused.contains("500m"), "{refused}");
        }
        for memory in [json!(1024), json!("12"), json!("1 QiB"), json!("1KiB"), json!("-1GiB"), json!("99999999TiB")] {
            let refused = read(json!({ "memory": memory })).unwrap_err();
            assert!(refused.contains("256MiB"), "{refused}");
        }
        assert!(read(json!({"ram": "1GiB"})).unwrap_err().contains("memory"), "known keys are named");
    }

    #[test]
    fn amounts_are_added_and_shown_rounded() {
        let each = Amount { cpu_millis: 500, memory_bytes: 300 << 20 };
        assert_eq!(each.times(5).to_string(), "2500m CPU and 1.4GiB");
        assert_eq!((each + each).to_string(), "1 CPU and 600MiB");
        assert!(each.fits(each) && !(each + each).fits(each));
        assert_eq!(Amount::default().without(each), Amount::default());
        assert_eq!(Amount::default().to_string(), "0m CPU and 0B");
        assert_eq!(MemoryBytes(u64::MAX).to_string(), "16777215.9TiB");
    }
}
