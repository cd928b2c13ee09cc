//! Nodes against each other, by the thousand seeds. `DLM_SEED=n` runs one seed with a trace, `DLM_SEEDS=n` that many.
#![allow(clippy::print_stdout)] // a failing seed says how it is run again

mod sim;

use sim::{Plan, run};

#[test]
fn calm() {
    let plan = Plan {
        name: "calm",
        nodes: (2, 5),
        names: 3,
        deeds: 250,
        deaths: 0,
        leaves: 0,
        kernel_peers: true,
        late_answers: false,
    };
    run(plan, 150);
}

#[test]
fn coming_and_going() {
    let plan = Plan {
        name: "coming_and_going",
        nodes: (2, 6),
        names: 4,
        deeds: 250,
        deaths: 0,
        leaves: 6,
        kernel_peers: true,
        late_answers: false,
    };
    run(plan, 500);
}

#[test]
fn deaths() {
    let plan = Plan {
        name: "deaths",
        nodes: (2, 6),
        names: 3,
        deeds: 250,
        deaths: 4,
        leaves: 0,
        kernel_peers: true,
        late_answers: false,
    };
    run(plan, 800);
}

#[test]
fn everything() {
    let plan = Plan {
        name: "everything",
        nodes: (3, 8),
        names: 4,
        deeds: 300,
        deaths: 5,
        leaves: 5,
        kernel_peers: false,
        late_answers: false,
    };
    run(plan, 800);
}

#[test]
fn storm() {
    let plan = Plan {
        name: "storm",
        nodes: (3, 6),
        names: 2,
        deeds: 200,
        deaths: 6,
        leaves: 8,
        kernel_peers: true,
        late_answers: false,
    };
    run(plan, 500);
}

#[test]
fn late_answers() {
    let plan = Plan {
        name: "late_answers",
        nodes: (2, 5),
        names: 3,
        deeds: 200,
        deaths: 3,
        leaves: 4,
        kernel_peers: true,
        late_answers: true,
    };
    run(plan, 400);
}
