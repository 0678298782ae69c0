//! A handler that shows what a snapshot keeps and what is new at each start.
//!
//! Each line of the answer is one value. The deploy warns that random numbers were drawn before the snapshot: they are what this
//! function is about.
//!
//! ```text
//! hob deploy                                                  # in this folder
//! curl http://127.0.0.1:3000/frozen/ > a
//! curl http://127.0.0.1:3000/frozen/ | diff a -               # the lines that begin with `new`, and no other
//! ```

use std::collections::hash_map;
use std::env;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use hob_sdk::{Error, RandomState, Request, random};

/// What `init` saw.
struct Kept {
    greeting: Option<String>,
    random: u64,
    sdk_hash: u64,
    std_hash: u64,
    time: Instant,
}

static KEPT: OnceLock<Kept> = OnceLock::new();
/// Calls of each export, in this instance and in the one that the snapshot was taken of.
static INITS: AtomicU32 = AtomicU32::new(0);
static RESTORES: AtomicU32 = AtomicU32::new(0);
static REQUESTS: AtomicU32 = AtomicU32::new(0);
/// What `restored` drew.
static RESTORED_RANDOM: AtomicU64 = AtomicU64::new(0);

#[hob_sdk::init]
fn init() {
    INITS.fetch_add(1, Relaxed);
    KEPT.get_or_init(|| Kept {
        greeting: env::var("GREETING").ok(),
        random: random::u64(),
        sdk_hash: RandomState::new().hash_one("x"),
        // Here std draws its keys; it derives all others from these.
        std_hash: hash_map::RandomState::new().hash_one("x"),
        time: Instant::now(),
    });
}

#[hob_sdk::restored]
fn restored() {
    RESTORES.fetch_add(1, Relaxed);
    RESTORED_RANDOM.store(random::u64(), Relaxed);
}

#[hob_sdk::function]
fn handle(_req: Request) -> Result<String, Error> {
    let kept = KEPT.get().ok_or("nothing was kept: the host did not call hob_init")?;
    REQUESTS.fetch_add(1, Relaxed);
    let count = |counter: &AtomicU32| u64::from(counter.load(Relaxed));
    let numbers = [
        ("same inits", count(&INITS)),
        ("same restores", count(&RESTORES)),
        ("same requests", count(&REQUESTS)),
        ("same number of init", kept.random),
        ("same hash of init", kept.sdk_hash),
        ("same std hash of init", kept.std_hash),
        ("same std hash of the handler", hash_map::RandomState::new().hash_one("x")),
        ("new number of restored", RESTORED_RANDOM.load(Relaxed)),
        ("new number of the handler", random::u64()),
        ("new hash of the handler", RandomState::new().hash_one("x")),
    ];
    let mut text: String = numbers.map(|(name, number)| format!("{name}: {number}\n")).concat();
    text += &format!("same environment of init: {}\n", kept.greeting.as_deref().unwrap_or("none"));
    text += &format!("same time runs backwards: {}\n", Instant::now() < kept.time);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_after_init_and_says_so_before() {
        let get = || handle(hob_sdk::http::Request::get("/").body("").unwrap().into());
        assert!(get().unwrap_err().to_string().contains("hob_init"));
        init();
        restored();
        let text = get().unwrap();
        for line in ["same inits: 1\n", "same restores: 1\n", "same requests: 1\n", "same time runs backwards: false\n"] {
            assert!(text.contains(line), "{text}");
        }
        assert!(get().unwrap().contains("same requests: 2\n"));
    }
}
