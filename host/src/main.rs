//! The program `hob`: becomes the child of a build if it was started as one, else does what the command line says.

use std::process::ExitCode;

use clap::Parser;
use hob::cli::Cli;

/// Starting and freeing instances is many small allocations: `docs/decisions/0007-allocator.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hob::engine::build::child::run_if_child();
    let cli = Cli::parse();
    let format = cli.format();
    match cli.run() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.show(format);
            ExitCode::from(failure.code())
        }
    }
}
