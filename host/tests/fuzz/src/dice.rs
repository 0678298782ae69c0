//! Numbers that a seed decides, and mutations made of them.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

/// Numbers at which code changes its mind.
const EDGES: [u32; 16] =
    [0, 1, 7, 8, 63, 64, 127, 128, 255, 4095, 4096, 65_535, 65_536, i32::MAX as u32, i32::MAX as u32 + 1, u32::MAX];

impl Dice {
    /// The numbers of one input of a run.
    pub(crate) fn new(seed: u64, input: u64) -> Self {
        let mut dice = Self(seed.rotate_left(32) ^ input.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        dice.next();
        dice
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is above 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or_default()
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A number such as guests pass for pointers and lengths: at an edge, near `size`, or any.
    pub(crate) fn word(&mut self, size: u32) -> u32 {
        let any = u32::try_from(self.next() >> 32).unwrap_or_default();
        match self.below(6) {
            0 => *self.pick(&EDGES),
            1 => size.wrapping_sub(any % 32),
            2 => size.wrapping_add(any % 32),
            3 => any % 64,
            4 => any % size.max(1),
            _ => any,
        }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = std::iter::from_fn(|| Some(self.next().to_le_bytes()));
        words.take(len.div_ceil(8)).flatten().take(len).collect()
    }

    /// Changes `input` in a few places: flips, cuts, copies within it, pieces of `other`.
    pub(crate) fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8], len_max: usize) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            match self.below(8) {
                0 if !input.is_empty() => {
                    let at = self.below(input.len());
                    input[at] ^= 1 << self.below(8);
                }
                1 if !input.is_empty() => {
                    let at = self.below(input.len());
                    input[at] = self.next().to_le_bytes()[0];
                }
                2 => {
                    let byte = *self.pick(&[0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'\'', b'[', b'{', b'=']);
                    input.insert(at, byte);
                }
                3 if !input.is_empty() => {
                    let end = at + self.below(input.len() + 1 - at);
                    drop(input.drain(at..end.min(at + 16)));
                }
                4 if !input.is_empty() => input.truncate(at),
                5 => {
                    let from = self.below(input.len() + 1);
                    let len = self.below((input.len() + 1 - from).min(64));
                    let piece = input[from..from + len].to_vec();
                    drop(input.splice(at..at, piece));
                }
                6 => {
                    let from = self.below(other.len() + 1);
                    let len = self.below((other.len() + 1 - from).min(64));
                    drop(input.splice(at..at, other[from..from + len].iter().copied()));
                }
                _ => {
                    let word = self.word(65_536).to_le_bytes();
                    let end = (at + 4).min(input.len());
                    drop(input.splice(at..end, word));
                }
            }
        }
        input.truncate(len_max);
    }
}
