//! An ordinary program that also calls an interface of WASI 0.2: built for `wasm32-wasip1` it is a module with both `_start` and the
//! type of a component.

use std::io::Read;

fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("standard input can be read");
    let args = wasi::cli::environment::get_arguments();
    println!("{:?} {}", args.iter().skip(1).collect::<Vec<_>>(), text.to_uppercase());
    std::process::exit(if text == "fail" { 1 } else { 0 });
}
