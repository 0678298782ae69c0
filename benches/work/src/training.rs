//! A small neural network and its training: 99 features, two hidden layers of 10, one answer; Adam, one step for each batch.
//!
//! `f32` in one order everywhere, so that a native program and a guest end with the same bits ([`Trainer::digest`]). A layer has 12 lanes
//! in three vectors of 4, which both instruction sets have; the last two stay 0. They are vectors by name (the crate `wide`): what LLVM
//! makes of plain arrays suits a processor, and falls apart into lanes for WebAssembly.

use wide::f32x4;

use crate::Dice;

/// Features of a row.
pub const FEATURES: usize = 99;
/// Bytes of a row: its label, then its features, each an `f32`.
pub const ROW_BYTES: usize = 4 * (FEATURES + 1);

const HIDDEN: usize = 10;
/// Vectors of a layer.
const VECTORS: usize = 3;
const LANES: usize = 4 * VECTORS;
/// Features between two jumps, each of which costs a guest the question for its time, and the registers that are saved for that.
const STRIDE: usize = 3;
/// Rows that go through the first layer together: its weights are fetched once for them, and its gradient kept once.
const ROWS: usize = 4;
const _: () = assert!(FEATURES.is_multiple_of(STRIDE));
const NUMBERS: usize = LANES * (FEATURES + 1) + LANES * (LANES + 1) + LANES + 1;

const RATE: f32 = 0.01;
const DECAY: (f32, f32) = (0.9, 0.999);

type Lanes = [f32x4; VECTORS];
const NONE: Lanes = [f32x4::ZERO; VECTORS];

/// A batch of `rows` rows.
#[must_use]
pub fn batch(number: u64, rows: usize) -> Vec<u8> {
    let mut dice = Dice(number << 32);
    let mut batch = Vec::with_capacity(rows * ROW_BYTES);
    let mut features = [0f32; FEATURES + 1];
    for _ in 0..rows {
        for pair in features.chunks_exact_mut(2) {
            let bits = dice.next();
            pair[0] = unit(bits >> 32);
            pair[1] = unit(bits);
        }
        let positive = features[0] + features[1] - features[2] * features[3] > 0.0;
        batch.extend_from_slice(&f32::from(u8::from(positive)).to_le_bytes());
        features[..FEATURES].iter().for_each(|feature| batch.extend_from_slice(&feature.to_le_bytes()));
    }
    batch
}

/// From -1 to 1.
#[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are meant")]
fn unit(bits: u64) -> f32 {
    // The upper 24 of 32 bits: exact as an f32.
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit")]
    let number = ((bits as u32) >> 8) as f32;
    number / 8_388_608.0 - 1.0
}

/// Weights, or what belongs to each of them.
#[derive(Debug, Clone, PartialEq)]
struct Weights {
    first: [Lanes; FEATURES],
    first_bias: Lanes,
    second: [Lanes; LANES],
    second_bias: Lanes,
    last: Lanes,
    last_bias: f32,
}

impl Weights {
    const ZERO: Self =
        Self { first: [NONE; FEATURES], first_bias: NONE, second: [NONE; LANES], second_bias: NONE, last: NONE, last_bias: 0.0 };

    fn all_mut(&mut self) -> impl Iterator<Item = &mut f32> {
        let layers = self.first.as_flattened_mut().iter_mut().chain(&mut self.first_bias);
        let layers = layers.chain(self.second.as_flattened_mut()).chain(&mut self.second_bias).chain(&mut self.last);
        layers.flat_map(f32x4::as_mut_array).chain(std::iter::once(&mut self.last_bias))
    }

    fn all(&self) -> impl Iterator<Item = f32> {
        let layers = self.first.as_flattened().iter().chain(&self.first_bias);
        let layers = layers.chain(self.second.as_flattened()).chain(&self.second_bias).chain(&self.last);
        layers.flat_map(f32x4::as_array).chain(std::iter::once(&self.last_bias)).copied()
    }
}

/// A network and the state of its training.
#[derive(Debug, Clone, PartialEq)]
pub struct Trainer {
    weights: Weights,
    mean: Weights,
    square: Weights,
    /// The powers of both decays that the next step has.
    powers: (f32, f32),
}

impl Trainer {
    /// Bytes of [`Trainer::to_bytes`].
    pub const BYTES: usize = 4 * (3 * NUMBERS + 2);

    /// A network that has learnt nothing; the same each time.
    #[must_use]
    pub fn new() -> Self {
        let mut weights = Weights::ZERO;
        let mut dice = Dice(10);
        let mut fill = |lanes: &mut Lanes| {
            let lanes = lanes.iter_mut().flat_map(f32x4::as_mut_array).take(HIDDEN);
            lanes.for_each(|lane| *lane = unit(dice.next()) * 0.2);
        };
        weights.first.iter_mut().for_each(&mut fill);
        weights.second[..HIDDEN].iter_mut().for_each(&mut fill);
        fill(&mut weights.last);
        Self { weights, mean: Weights::ZERO, square: Weights::ZERO, powers: (1.0, 1.0) }
    }

    /// As it is kept between two calls.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let numbers = self.weights.all().chain(self.mean.all()).chain(self.square.all());
        numbers.chain([self.powers.0, self.powers.1]).flat_map(f32::to_le_bytes).collect()
    }

    /// Takes over what [`Trainer::to_bytes`] wrote; `false` for bytes of another length, which change nothing. In place, because a guest's
    /// stack has no room for several.
    #[must_use]
    pub fn load(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() != Self::BYTES {
            return false;
        }
        let mut numbers = bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number));
        let Self { weights, mean, square, powers } = self;
        let places = weights.all_mut().chain(mean.all_mut()).chain(square.all_mut()).chain([&mut powers.0, &mut powers.1]);
        for (place, number) in places.zip(&mut numbers) {
            *place = number;
        }
        true
    }

    /// One step on a batch; the mean square error before it.
    pub fn step(&mut self, batch: &[u8]) -> f32 {
        let (mut gradient, mut error) = (Weights::ZERO, 0.0);
        let rows = batch.as_chunks::<ROW_BYTES>().0;
        let second_turned = turned(&self.weights.second);
        let (several, rest) = rows.as_chunks::<ROWS>();
        for rows in several {
            back(&self.weights, &second_turned, &mut gradient, rows).iter().for_each(|of_row| error += of_row);
        }
        for row in rest {
            back(&self.weights, &second_turned, &mut gradient, &[*row]).iter().for_each(|of_row| error += of_row);
        }
        #[expect(clippy::cast_precision_loss, reason = "a batch has fewer than 2^24 rows")]
        let count = rows.len().max(1) as f32;
        self.adam(&gradient, count);
        error / count
    }

    fn adam(&mut self, gradient: &Weights, count: f32) {
        self.powers.0 *= DECAY.0;
        self.powers.1 *= DECAY.1;
        let (scale_mean, scale_square) = (1.0 / (1.0 - self.powers.0), 1.0 / (1.0 - self.powers.1));
        let moments = self.mean.all_mut().zip(self.square.all_mut());
        for ((weight, gradient), (mean, square)) in self.weights.all_mut().zip(gradient.all()).zip(moments) {
            let gradient = gradient / count;
            *mean = DECAY.0 * *mean + (1.0 - DECAY.0) * gradient;
            *square = DECAY.1 * *square + (1.0 - DECAY.1) * gradient * gradient;
            *weight -= RATE * (*mean * scale_mean) / ((*square * scale_square).sqrt() + 1e-8);
        }
    }

    /// A number that differs when any bit of the weights does.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.weights.all().fold(0, |digest, weight| Dice(digest ^ u64::from(weight.to_bits())).next())
    }
}

impl Default for Trainer {
    fn default() -> Self {
        Self::new()
    }
}

/// With rows and columns exchanged.
fn turned(weights: &[Lanes; LANES]) -> [Lanes; LANES] {
    let lane = |row: usize, column: usize| weights[row][column / 4].as_array()[column % 4];
    let vector = |column: usize, part: usize| f32x4::new(std::array::from_fn(|row| lane(4 * part + row, column)));
    std::array::from_fn(|column| std::array::from_fn(|part| vector(column, part)))
}

/// Adds the gradient of some rows, one after the other; their square errors.
#[inline]
fn back<const N: usize>(
    weights: &Weights,
    second_turned: &[Lanes; LANES],
    gradient: &mut Weights,
    rows: &[[u8; ROW_BYTES]; N],
) -> [f32; N] {
    let strides = rows.each_ref().map(|row| row[4..].as_chunks::<4>().0.as_chunks::<STRIDE>().0);
    let mut first = [weights.first_bias; N];
    for (at, weights) in weights.first.as_chunks::<STRIDE>().0.iter().enumerate() {
        for (within, weights) in weights.iter().enumerate() {
            for (first, strides) in first.iter_mut().zip(&strides) {
                add(first, f32::from_le_bytes(strides[at][within]), weights);
            }
        }
    }
    let mut errors = [0.0; N];
    let mut of_first = [NONE; N];
    for (((row, first), of_first), error) in rows.iter().zip(&mut first).zip(&mut of_first).zip(&mut errors) {
        let label = f32::from_le_bytes([row[0], row[1], row[2], row[3]]);
        (*of_first, *error) = back_to_first(weights, second_turned, gradient, label, first);
    }
    for (at, gradient) in gradient.first.as_chunks_mut::<STRIDE>().0.iter_mut().enumerate() {
        for (within, gradient) in gradient.iter_mut().enumerate() {
            for (of_first, strides) in of_first.iter().zip(&strides) {
                add(gradient, f32::from_le_bytes(strides[at][within]), of_first);
            }
        }
    }
    of_first.iter().for_each(|of_first| add(&mut gradient.first_bias, 1.0, of_first));
    errors
}

/// What lies behind the sums of a row's first layer: adds its gradient; the gradient of these sums, and the square error.
#[inline]
fn back_to_first(
    weights: &Weights,
    second_turned: &[Lanes; LANES],
    gradient: &mut Weights,
    label: f32,
    first: &mut Lanes,
) -> (Lanes, f32) {
    rectify(first);
    let mut second = weights.second_bias;
    add_all(&mut second, first, &weights.second);
    rectify(&mut second);
    let answer = sigmoid(weights.last_bias + dot(&second, &weights.last));
    let off = answer - label;

    add(&mut gradient.last, off, &second);
    gradient.last_bias += off;
    let mut of_second = NONE;
    add(&mut of_second, off, &weights.last);
    mask(&mut of_second, &second);
    let mut of_first = NONE;
    add_all(&mut of_first, &of_second, second_turned);
    for (value, gradient) in numbers(first).iter().zip(&mut gradient.second[..HIDDEN]) {
        add(gradient, *value, &of_second);
    }
    add(&mut gradient.second_bias, 1.0, &of_second);
    mask(&mut of_first, first);
    (of_first, off * off)
}

#[inline]
fn add(to: &mut Lanes, factor: f32, lanes: &Lanes) {
    let factor = f32x4::splat(factor);
    for (to, lanes) in to.iter_mut().zip(lanes) {
        *to += factor * *lanes;
    }
}

/// Adds each row of a layer as often as its factor says.
#[inline]
fn add_all(to: &mut Lanes, factors: &Lanes, rows: &[Lanes; LANES]) {
    for (factor, row) in numbers(factors).iter().zip(&rows[..HIDDEN]) {
        add(to, *factor, row);
    }
}

/// The lanes one by one.
#[inline]
fn numbers(lanes: &Lanes) -> [f32; LANES] {
    let mut numbers = [0.0; LANES];
    for (to, from) in numbers.as_chunks_mut::<4>().0.iter_mut().zip(lanes) {
        *to = from.to_array();
    }
    numbers
}

#[inline]
fn dot(one: &Lanes, other: &Lanes) -> f32 {
    let sums = one.iter().zip(other).fold(f32x4::ZERO, |sums, (one, other)| sums + *one * *other).to_array();
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

#[inline]
fn rectify(lanes: &mut Lanes) {
    let values = *lanes;
    mask(lanes, &values);
}

/// 0 where the layer's value is not above 0.
#[inline]
fn mask(lanes: &mut Lanes, values: &Lanes) {
    lanes.iter_mut().zip(values).for_each(|(lanes, values)| *lanes &= values.simd_gt(f32x4::ZERO));
}

/// The standard library's `exp` is the platform's, and differs in the last bits.
fn sigmoid(value: f32) -> f32 {
    let value = value.clamp(-30.0, 30.0);
    // e^-value = 2^whole * e^rest
    let whole = (-value * std::f32::consts::LOG2_E + 0.5).floor();
    let rest = -value - whole * std::f32::consts::LN_2;
    let terms = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0f32];
    let exp = terms.iter().fold(0.0, |sum, term| sum * rest + term);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from -44 to 44")]
    let power = f32::from_bits(((whole as i32 + 127) as u32) << 23);
    1.0 / (1.0 + exp * power)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn it_learns() {
        let batches: Vec<_> = (0..2).map(|number| batch(number, 500)).collect();
        let mut trainer = Trainer::new();
        let first = trainer.step(&batches[0]);
        let mut last = first;
        for number in 0..60 {
            last = trainer.step(&batches[number % batches.len()]);
        }
        assert!(first > 0.2 && last < first / 2.0, "from {first} to {last}");
    }

    #[test]
    fn it_goes_on_from_its_bytes_with_the_same_bits() {
        let batch = batch(1, 500);
        let mut whole = Trainer::new();
        whole.step(&batch);
        let mut again = Trainer::new();
        assert!(again.load(&whole.to_bytes()));
        assert_eq!(again, whole);
        whole.step(&batch);
        again.step(&batch);
        assert_eq!(again.digest(), whole.digest());
        assert_ne!(whole.digest(), Trainer::new().digest());
        assert!(!again.load(&whole.to_bytes()[1..]));
    }

    #[test]
    fn a_sigmoid_is_one() {
        for value in [-40.0f32, -5.0, -0.3, 0.0, 0.7, 12.0, 40.0] {
            let expected = 1.0 / (1.0 + f64::from(-value).exp());
            assert!((f64::from(sigmoid(value)) - expected).abs() < 1e-6, "{value}");
        }
    }

    #[test]
    fn a_batch_has_both_labels() {
        let batch = batch(0, 100);
        assert_eq!(batch.len(), 100 * ROW_BYTES);
        let positive = batch.chunks_exact(ROW_BYTES).filter(|row| row[..4] == 1f32.to_le_bytes()).count();
        assert!((20..80).contains(&positive), "{positive}");
    }
}
