//! The program `hob`.

fn main() {}
