//! A command: an ordinary program that knows nothing of Hob, HTTP or Wasm. The request's body is its standard input, its
//! standard output is the response.
//!
//! It prints how many lines, words and bytes there are, then the ten most frequent words (without case and punctuation),
//! each with its count; words of one count come in alphabetical order.
//!
//! ```text
//! cargo run --release < Cargo.toml                            # here, or
//! hob deploy                                                  # in this folder
//! curl http://127.0.0.1:3000/wordcount/ --data-binary @Cargo.toml
//! ```

use std::collections::HashMap;
use std::io::{self, BufRead, Write};

const TOP: usize = 10;

fn main() -> io::Result<()> {
    count(io::stdin().lock(), io::stdout().lock())
}

fn count(mut input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let (mut lines, mut words, mut bytes) = (0_u64, 0_u64, 0_u64);
    let mut counts: HashMap<String, u64> = HashMap::new();
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        bytes += line.len() as u64;
        lines += u64::from(line.ends_with(b"\n"));
        let text = String::from_utf8_lossy(&line);
        words += text.split_whitespace().count() as u64;
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            let word = word.to_lowercase();
            // Most words have been seen before: only a new one is moved into the map.
            match counts.get_mut(&word) {
                Some(count) => *count += 1,
                None => drop(counts.insert(word, 1)),
            }
        }
        line.clear();
    }
    writeln!(output, "{lines} lines, {words} words, {bytes} bytes")?;
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable_by(|(a, a_count), (b, b_count)| b_count.cmp(a_count).then_with(|| a.cmp(b)));
    for (word, count) in counts.iter().take(TOP) {
        writeln!(output, "{word} {count}")?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &[u8], expected: &str) {
        let mut output = Vec::new();
        count(input, &mut output).unwrap();
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }

    #[test]
    fn it_counts() {
        check(b"", "0 lines, 0 words, 0 bytes\n");
        check(b"The cat; the dog.\nA cat", "1 lines, 6 words, 23 bytes\ncat 2\nthe 2\na 1\ndog 1\n");
        check(b"\xff a\n", "1 lines, 2 words, 4 bytes\na 1\n");
        check(b"l k j i h g f e d c b a", "0 lines, 12 words, 23 bytes\na 1\nb 1\nc 1\nd 1\ne 1\nf 1\ng 1\nh 1\ni 1\nj 1\n");
    }
}
