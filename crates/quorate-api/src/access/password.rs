//! Hashes of passwords.
//!
//! Slow on purpose, and so bounded: at most [`AT_ONCE`] are computed at one time on a node, and a
//! few wait. A flood of logins costs 2 × 19 MiB, whatever its size: the memory is kept from one hash to the
//! next, because what a thread frees its allocator keeps, and there are many threads that may hash
//! (measured with a thousand logins at once: 400 MiB).
//!
//! # Sources
//! OWASP password storage cheat sheet: argon2id, 19 MiB, two passes, one lane.

use crate::problem::Failure;
use argon2::password_hash::{Output, ParamsString, PasswordHash, SaltString};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use http::StatusCode;
use quorate_model::secret::Secret;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Hashes that are computed at one time.
const AT_ONCE: usize = 2;
/// Those that may wait: at 30 ms each, a quarter of a second.
const WAITING_MAX: usize = 16;

/// Shortest and longest password, in characters.
const CHARS_MIN: usize = 12;
const CHARS_MAX: usize = 256;

/// Letters and digits that nobody takes for another; 20 of them are 98 bits.
const ALPHABET: &[u8; 31] = b"abcdefghijkmnpqrstuvwxyz2345678";
const GENERATED: usize = 20;

/// What unknown users are compared with, so that they take as long as known ones: a hash that was not made
/// from a password. Making one would cost each start 19 MiB for nothing.
static NOBODY: LazyLock<String> =
    LazyLock::new(|| phc_of(&Recipe::of_today(), &[0; 16], &[0; Params::DEFAULT_OUTPUT_LEN]));

/// Memory for hashes that nobody makes now.
static MEMORY: Mutex<Vec<Vec<Block>>> = Mutex::new(Vec::new());

/// One computation of argon2.
struct Recipe {
    algorithm: Algorithm,
    version: Version,
    params: Params,
}

impl Recipe {
    /// What is asked for today.
    fn of_today() -> Recipe {
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("the parameters are within argon2's limits");
        Recipe { algorithm: Algorithm::Argon2id, version: Version::V0x13, params }
    }

    /// What a PHC string was made by.
    fn of(known: &PasswordHash<'_>) -> argon2::password_hash::Result<Recipe> {
        let version = known.version.map(Version::try_from).transpose()?.unwrap_or_default();
        Ok(Recipe { algorithm: Algorithm::try_from(known.algorithm)?, version, params: Params::try_from(known)? })
    }

    /// A hash of `length` bytes.
    fn hash(self, password: &Secret<String>, salt: &[u8], length: usize) -> argon2::password_hash::Result<Output> {
        let blocks = self.params.block_count();
        let kept = || MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = kept().pop().unwrap_or_default();
        memory.resize(blocks.max(memory.len()), Block::default());
        let made = Output::init_with(length, |out| {
            let argon2 = Argon2::new(self.algorithm, self.version, self.params);
            let password = password.expose().as_bytes();
            Ok(argon2.hash_password_into_with_memory(password, salt, out, &mut memory[..blocks])?)
        });
        let mut kept = kept();
        if kept.len() < AT_ONCE {
            kept.push(memory);
        }
        made
    }
}

/// A PHC string of this password with a fresh salt. Takes some 30 ms.
///
/// # Panics
/// When the system gives no randomness: then nothing secret can be made at all.
#[must_use]
pub fn hash_password(password: &Secret<String>) -> String {
    let salt = random::<16>();
    let hash = Recipe::of_today().hash(password, &salt, Params::DEFAULT_OUTPUT_LEN);
    let hash = hash.expect("a password and a salt of these lengths can be hashed");
    phc_of(&Recipe::of_today(), &salt, hash.as_bytes())
}

fn phc_of(recipe: &Recipe, salt: &[u8; 16], hash: &[u8]) -> String {
    let salt = SaltString::encode_b64(salt).expect("16 bytes are a salt");
    let params = ParamsString::try_from(&recipe.params).expect("the parameters can be written down");
    let (algorithm, version) = (recipe.algorithm.ident(), Some(recipe.version.into()));
    let hash = Some(Output::new(hash).expect("argon2 makes hashes of this length"));
    PasswordHash { algorithm, version, params, salt: Some(salt.as_salt()), hash }.to_string()
}

/// A random password that people can type.
#[must_use]
pub fn generate_password() -> Secret<String> {
    let mut text = String::with_capacity(GENERATED + GENERATED / 5);
    let mut letters = 0;
    while letters < GENERATED {
        for byte in random::<32>() {
            // 31 letters: the bytes above 248 would make the first ones likelier.
            if letters == GENERATED || byte >= 248 {
                continue;
            }
            if letters > 0 && letters.is_multiple_of(5) {
                text.push('-');
            }
            text.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
            letters += 1;
        }
    }
    Secret::new(text)
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system gives randomness");
    bytes
}

/// Whether the password may be set.
pub(crate) fn acceptable(user: &str, password: &Secret<String>) -> Result<(), Failure> {
    let chars = password.expose().chars().count();
    let problem = if !(CHARS_MIN..=CHARS_MAX).contains(&chars) {
        format!("the password has {chars} characters")
    } else if password.expose().to_lowercase().contains(user) && user.len() > 2 {
        "the password contains the user's name".to_owned()
    } else {
        return Ok(());
    };
    let fix = format!("choose {CHARS_MIN} to {CHARS_MAX} characters without the name; several words do well");
    Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "weak-password", problem, fix))
}

/// Whether `password` is the one of this PHC string.
fn verify(phc: &str, password: &Secret<String>) -> bool {
    let Ok(known) = PasswordHash::new(phc) else { return false };
    let (Some(salt), Some(expected)) = (known.salt, known.hash) else { return false };
    let mut bytes = [0; argon2::password_hash::Salt::MAX_LENGTH];
    let Ok(salt) = salt.decode_b64(&mut bytes) else { return false };
    // The parameters of the string, not ours: it may be older. The comparison takes the same time always.
    Recipe::of(&known).and_then(|recipe| recipe.hash(password, salt, expected.len())).is_ok_and(|it| it == expected)
}

/// Whether the string was made with less than what is asked for today.
fn is_outdated(phc: &str) -> bool {
    let params = PasswordHash::new(phc).ok().and_then(|known| Params::try_from(&known).ok());
    params
        .is_none_or(|params| params.m_cost() < MEMORY_KIB || params.t_cost() < PASSES || !phc.starts_with("$argon2id$"))
}

/// One process is one node, however many doors its API has.
static PERMITS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(AT_ONCE)));

/// Computes hashes, few at a time.
#[derive(Debug)]
pub(crate) struct Hashing {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The right to compute a hash.
#[derive(Debug)]
pub(crate) struct Turn(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

/// What came of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    Wrong,
    Right { outdated: bool },
}

impl Hashing {
    pub(crate) fn new() -> Hashing {
        Hashing::with(PERMITS.clone())
    }

    fn with(permits: Arc<Semaphore>) -> Hashing {
        Hashing { permits, waiting: AtomicUsize::new(0) }
    }

    /// Waits for a turn, unless too many do.
    pub(crate) async fn turn(&self) -> Result<Turn, Failure> {
        /// Counts one that waits, also if it goes away meanwhile.
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "too many passwords wait to be looked at",
                "pause and retry",
            ));
        }
        let _waits = Waits(&self.waiting);
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        Ok(Turn(permit))
    }

    /// Compares with `phc`; `None` takes as long and is wrong.
    pub(crate) async fn compare(&self, turn: Turn, phc: Option<String>, password: Secret<String>) -> Compared {
        let compared = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            match phc {
                Some(phc) if verify(&phc, &password) => Compared::Right { outdated: is_outdated(&phc) },
                Some(_) => Compared::Wrong,
                None => {
                    verify(&NOBODY, &password);
                    Compared::Wrong
                }
            }
        });
        compared.await.unwrap_or(Compared::Wrong)
    }

    pub(crate) async fn hash(&self, password: Secret<String>) -> Result<String, Failure> {
        let turn = self.turn().await?;
        let hashed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            hash_password(&password)
        });
        Ok(hashed.await.expect("hashing does not panic"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn a_password_is_compared_with_its_hash_and_nobodys_is_always_wrong() {
        let hashing = Hashing::new();
        let password = || Secret::new("correct horse battery".to_owned());
        let phc = hash_password(&password());
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        let compare =
            async |phc: Option<String>, password| hashing.compare(hashing.turn().await.unwrap(), phc, password).await;
        assert_eq!(compare(Some(phc.clone()), password()).await, Compared::Right { outdated: false });
        assert_eq!(compare(Some(phc), Secret::new("correct horse".into())).await, Compared::Wrong);
        assert_eq!(compare(Some("nonsense".into()), password()).await, Compared::Wrong);
        assert_eq!(compare(None, password()).await, Compared::Wrong);
    }

    #[tokio::test]
    async fn an_older_hash_is_right_and_known_to_be_older() {
        let params = Params::new(8 * 1024, 1, 1, None).unwrap();
        let salt = SaltString::encode_b64(&[7; 16]).unwrap();
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let older = argon2::PasswordHasher::hash_password(&argon2, b"older password", &salt);
        let hashing = Hashing::new();
        let turn = hashing.turn().await.unwrap();
        let compared = hashing.compare(turn, Some(older.unwrap().to_string()), Secret::new("older password".into()));
        assert_eq!(compared.await, Compared::Right { outdated: true });
    }

    #[tokio::test]
    async fn a_flood_of_logins_waits_in_a_short_queue() {
        let hashing = Hashing::with(Arc::new(Semaphore::new(AT_ONCE)));
        let held = [hashing.turn().await.unwrap(), hashing.turn().await.unwrap()];
        let mut waiting: Vec<_> = (0..WAITING_MAX + 5).map(|_| Box::pin(hashing.turn())).collect();
        let mut refused = 0;
        for turn in &mut waiting {
            if let Some(turn) = turn.as_mut().now_or_never() {
                assert_eq!(turn.unwrap_err().problem().code, "overloaded");
                refused += 1;
            }
        }
        assert_eq!(refused, 5);
        drop((held, waiting));
        assert!(hashing.turn().await.is_ok());
        assert_eq!(hashing.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn generated_passwords_are_long_and_never_repeat() {
        let all: BTreeSet<String> = (0..200).map(|_| generate_password().expose().clone()).collect();
        assert_eq!(all.len(), 200);
        assert!(all.iter().all(|text| text.len() == 23 && acceptable("admin", &Secret::new(text.clone())).is_ok()));
    }

    #[test]
    fn short_passwords_and_the_users_name_are_refused() {
        for weak in ["", "short", "elevenchars", "my name is Operator", &"x".repeat(257)] {
            let refused = acceptable("operator", &Secret::new(weak.to_owned())).unwrap_err();
            assert_eq!(refused.problem().code, "weak-password", "{weak}");
        }
        acceptable("operator", &Secret::new("twelve chars".into())).unwrap();
    }
}
