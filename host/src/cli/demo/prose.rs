//! A text as long as a book, the same each time.

/// Words in the order of how often they come.
const WORDS: &str = "\
    the of and a to in he was that it his her with as had she for at on not but be they by him from all were this \
    which one there so when said out up night sea house old man hand time long fire hearth shelf kettle warm winter \
    door light window water stone road garden river morning letter voice shadow silence candle bread table captain \
    island journey kingdom forest mountain village harbour lantern memory promise stranger thunder whisper courage \
    daughter evening fortune history machine neighbour orchard passage quarrel remember sorrow treasure uncertain \
    wanderer";

/// Numbers that look random and are the same each time (xorshift64*, Vigna 2016).
struct Numbers(u64);

impl Numbers {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(bits).unwrap_or_default() % end
    }

    /// One of `words`; the first ones come far more often than the last, as in any language.
    fn word<'a>(&mut self, words: &[&'a str]) -> &'a str {
        let end = self.below(words.len()) + 1;
        words[self.below(end)]
    }
}

/// Sentences and paragraphs of at least `bytes_min` bytes, ending with a line's end.
pub(super) fn book(bytes_min: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut text = String::with_capacity(bytes_min + 1024);
    while text.len() < bytes_min {
        for _ in 0..3 + numbers.below(5) {
            sentence(&mut text, &words, &mut numbers);
        }
        text.push('\n');
    }
    text
}

/// One sentence on one or two lines.
fn sentence(text: &mut String, words: &[&str], numbers: &mut Numbers) {
    let len = 5 + numbers.below(16);
    for place in 0..len {
        let word = numbers.word(words);
        if place == 0 {
            text.extend(word.chars().next().map(|first| first.to_ascii_uppercase()));
            text.push_str(&word[1..]);
        } else {
            text.push_str(word);
        }
        text.push_str(match place {
            _ if place + 1 == len => ".\n",
            _ if place % 9 == 8 => "\n",
            _ if numbers.below(12) == 0 => ", ",
            _ => " ",
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_book_is_long_varied_and_the_same_each_time() {
        let text = book(600_000);
        assert!(text.len() >= 600_000 && text.len() < 610_000 && text.ends_with('\n'));
        assert_eq!(text, book(600_000));
        let count = |word: &str| text.split(|c: char| !c.is_alphabetic()).filter(|found| *found == word).count();
        let [the, fire, wanderer] = ["the", "fire", "wanderer"].map(count);
        assert!(the > 5 * fire && fire > wanderer && wanderer > 0, "{the} {fire} {wanderer}");
    }
}
