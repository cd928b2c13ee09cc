//! A cluster of pure nodes in one process: a seed decides everything.

mod check;
mod user;
mod world;

pub use world::{Plan, World};

/// Runs `count` seeds of a plan, or the one that `DLM_SEED` names, with a trace. `DLM_SEEDS` asks for another number.
pub fn run(plan: Plan, count: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("DLM_SEED") {
        World::new(plan, seed, true).run();
        return;
    }
    let count = number("DLM_SEEDS").unwrap_or(count);
    let first = number("DLM_FIRST").unwrap_or(0);
    for seed in first..first + count {
        let run = std::panic::AssertUnwindSafe(|| World::new(plan, seed, false).run());
        if let Err(cause) = std::panic::catch_unwind(run) {
            println!(
                "seed {seed} fails; again with: DLM_SEED={seed} cargo test -p dlm {}",
                plan.name
            );
            std::panic::resume_unwind(cause);
        }
    }
}
