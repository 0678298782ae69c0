//! Saved inputs: what a target begins with, and what once broke it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};

use crate::dice::Dice;

/// Inputs of one target.
#[derive(Debug)]
pub(crate) struct Corpus {
    dir: PathBuf,
    inputs: Vec<Vec<u8>>,
}

impl Corpus {
    /// The saved ones, and those that are `known` otherwise.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of(target: &str, known: impl IntoIterator<Item = Vec<u8>>) -> anyhow::Result<Self> {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut paths = match std::fs::read_dir(&dir) {
            Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", dir.display())),
        };
        // Their order decides what a seed makes.
        paths.sort();
        let mut inputs = Vec::new();
        for path in paths {
            let bytes = std::fs::read(&path)?;
            let is_text = path.extension().is_some_and(|extension| extension == "wat");
            inputs.push(if is_text { wat::parse_bytes(&bytes)?.into_owned() } else { bytes });
        }
        inputs.extend(known);
        anyhow::ensure!(!inputs.is_empty(), "{} is empty", dir.display());
        Ok(Self { dir, inputs })
    }

    /// Input number `number`: the saved ones first, then what the dice make of them.
    pub(crate) fn input(&self, dice: &mut Dice, number: u64, len_max: usize) -> Vec<u8> {
        if let Some(saved) = usize::try_from(number).ok().and_then(|number| self.inputs.get(number)) {
            return saved.clone();
        }
        let (mut input, other) = (dice.pick(&self.inputs).clone(), dice.pick(&self.inputs).clone());
        dice.mutate(&mut input, &other, len_max);
        input
    }

    /// Any of the saved ones, as it is.
    pub(crate) fn pick(&self, dice: &mut Dice) -> &[u8] {
        dice.pick::<Vec<u8>>(&self.inputs)
    }

    /// How many are saved; they are the first of every run.
    pub(crate) fn saved(&self) -> u64 {
        self.inputs.len() as u64
    }

    /// Runs `check` on an input. A panic is an error, as is what it answers.
    ///
    /// # Errors
    /// What did not hold. The input is saved then, to be the first of every later run.
    pub(crate) fn check<T>(&self, input: &[u8], check: impl FnOnce(&[u8]) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let checked = catch_unwind(AssertUnwindSafe(|| check(input))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            Err(anyhow!("it panicked: {}", text.unwrap_or("without a word")))
        });
        checked.or_else(|error| {
            let path = self.dir.join(format!("broke-{}", &hob::id::Digest::of(input).hex()[..16]));
            std::fs::create_dir_all(&self.dir)?;
            std::fs::write(&path, input)?;
            Err(error.context(format!("for the input that was saved as {}", path.display())))
        })
    }
}
