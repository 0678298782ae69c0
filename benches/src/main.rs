//! `hob-bench NAME [--quick] [-o json]`: one scenario by name, Hob beside its ceiling and its peers in the same run.
//!
//! Only ratios within one run mean something: the machine drifts between runs by more than most changes are worth. Figures that
//! documents quote come from a file in `results/`, written with `-o json`.

mod bare;
mod broadcast;
mod calls;
mod ceilings;
mod density;
mod disk;
mod fairness;
mod first_instruction;
mod flat;
mod fleet;
mod guests;
mod handoff;
mod http_hello;
mod kv;
mod load;
mod local;
mod memory;
mod node;
mod peers;
mod process;
mod redis;
mod report;
mod restart;
mod rivals;
mod rounds;
mod servers;
mod serving;
mod start;
mod training;
mod walls;

use clap::{Parser, ValueEnum};

use report::{Format, Report};

/// As the daemon has it; so has the ceiling, which is the same binary in another role.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Hob beside its ceilings and its peers.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure.
    scenario: Scenario,
    /// Shorter runs, for a check that all of it works; the figures mean little.
    #[arg(long)]
    quick: bool,
    /// Human text, or one JSON object for each figure.
    #[arg(short = 'o', long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scenario {
    /// HTTP hello: server on one core, load from the other; ceiling: bare hyper.
    HttpHello,
    /// In process, from `Store::new` to the guest's first instruction, all limits on.
    FirstInstruction,
    /// A deploy over HTTP until it is live.
    Deploy,
    /// Start of a node with 1,000 functions deployed.
    NodeStart,
    /// In process, start and whole invocation by rung of the ladder; and over HTTP; beside processes and `wasmtime serve`.
    Start,
    /// Start, memory and disk of a function whose initialisation built 1 MiB to 1 GiB.
    Flat,
    /// Up to 100,000 functions on one node: deploys per second, memory for each, starts by rung.
    Density,
    /// Start of a node with 100,000 functions, and its first request.
    Restart,
    /// Small entries, read and written by a function; beside a native program and Redis.
    Kv,
    /// What one function made, in the hands of another: 1 KB, 1 MB, 100 MB; beside two native processes and Redis.
    Handoff,
    /// An object of 100 MB in 1,000 instances at once; beside Redis.
    Broadcast,
    /// A model that learns from batches of 100 MB, one in each call; beside a native program, Redis and S3.
    Training,
    /// A neighbour of 64 guests that spin, when they die, and what each tenant gets.
    Fairness,
    /// The hello handler with all walls and without.
    Walls,
    /// Batches of documents for a classifier; beside a native server behind ZeroMQ, and Redis as a queue.
    Serving,
}

fn main() -> anyhow::Result<()> {
    hob::engine::build::child::run_if_child();
    if let Some(role) = servers::role_of_child() {
        return servers::run(role);
    }
    let args = Args::parse();
    let report = Report::new(args.output);
    match args.scenario {
        Scenario::HttpHello => http_hello::run(&report, args.quick),
        Scenario::FirstInstruction => first_instruction::run(&report, args.quick),
        Scenario::Deploy => node::deploy(&report, args.quick),
        Scenario::NodeStart => node::start(&report, args.quick),
        Scenario::Start => start::run(&report, args.quick),
        Scenario::Flat => flat::run(&report, args.quick),
        Scenario::Density => density::run(&report, args.quick),
        Scenario::Restart => restart::run(&report, args.quick),
        Scenario::Kv => kv::run(&report, args.quick),
        Scenario::Handoff => handoff::run(&report, args.quick),
        Scenario::Broadcast => broadcast::run(&report, args.quick),
        Scenario::Training => training::run(&report, args.quick),
        Scenario::Fairness => fairness::run(&report, args.quick),
        Scenario::Walls => walls::run(&report, args.quick),
        Scenario::Serving => serving::run(&report, args.quick),
    }
}
