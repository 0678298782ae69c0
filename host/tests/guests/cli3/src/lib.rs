//! A command that exports `wasi:cli/run` 0.3: it reads its input with the standard library, and writes to a stream of 0.3. Asked to
//! count it computes for many slices before that; asked to spin it never ends.

use std::io::Read;

use wasip3::cli::stdout;
use wasip3::exports::cli::run::Guest;

struct Command;

wasip3::cli::command::export!(Command);

impl Guest for Command {
    async fn run() -> Result<(), ()> {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|_| ())?;
        let mut number = 0_u64;
        while text == "spin" || (text == "count" && number < 50_000_000) {
            number = std::hint::black_box(number + 1);
        }
        let args: Vec<String> = std::env::args().skip(1).collect();
        let (mut tx, rx) = wasip3::wit_stream::new();
        let written = stdout::write_via_stream(rx);
        tx.write_all(format!("{args:?} {}\n", text.to_uppercase()).into_bytes()).await;
        drop(tx);
        written.await.map_err(|_| ())?;
        if text == "fail" { Err(()) } else { Ok(()) }
    }
}
