use futures_util::future::{FutureExt, select};

use super::*;

/// Many tasks that sleep, yield and draw numbers; the order in which they got on.
fn busy_run(seed: u64) -> (Vec<u64>, Fingerprint, u64) {
    let sim = Simulation::new(seed);
    let world = sim.world();
    let order = Rc::new(RefCell::new(Vec::new()));
    for number in 0..20 {
        let (task_world, order) = (world.clone(), order.clone());
        world.spawn_named("worker", async move {
            for _ in 0..5 {
                let pause = task_world.random() % 1000;
                task_world.sleep(Duration::from_nanos(pause)).await;
                yield_now().await;
                order.borrow_mut().push(number);
            }
        });
    }
    assert_eq!(sim.run_until_idle(), Ok(0));
    (order.take(), sim.fingerprint(), sim.steps())
}

#[test]
fn one_seed_is_one_order() {
    assert_eq!(busy_run(7), busy_run(7));
    assert_ne!(busy_run(7).0, busy_run(8).0);
    assert_ne!(busy_run(7).1, busy_run(8).1);
}

#[test]
fn runnable_tasks_are_picked_in_every_order() {
    let orders: std::collections::BTreeSet<_> = (0..200)
        .map(|seed| {
            let sim = Simulation::new(seed);
            let order = Rc::new(RefCell::new(Vec::new()));
            for number in 0..3 {
                let order = order.clone();
                sim.world()
                    .spawn(Box::pin(async move { order.borrow_mut().push(number) }));
            }
            sim.run_until_idle().unwrap();
            order.take()
        })
        .collect();
    assert_eq!(orders.len(), 6);
}

#[test]
fn time_jumps_to_the_next_timer() {
    let sim = Simulation::new(1);
    let world = sim.world();
    let start = world.wall();
    let real = std::time::Instant::now();
    let day = Duration::from_secs(86_400);
    sim.block_on(world.sleep(day)).unwrap();
    assert_eq!(world.now(), day);
    assert_eq!(world.wall().seconds, start.seconds + 86_400);
    assert!(real.elapsed() < Duration::from_secs(60));
}

#[test]
fn run_for_stops_the_clock_where_it_was_told() {
    let sim = Simulation::new(1);
    let world = sim.world();
    let fired = Rc::new(Cell::new(0));
    for seconds in [1, 2, 3] {
        let (sleep, fired) = (world.sleep(Duration::from_secs(seconds)), fired.clone());
        world.spawn(Box::pin(sleep.map(move |()| fired.set(fired.get() + 1))));
    }
    assert_eq!(sim.run_for(Duration::from_millis(2500)), Ok(1));
    assert_eq!((fired.get(), world.now()), (2, Duration::from_millis(2500)));
    assert_eq!(sim.run_until_idle(), Ok(0));
    assert_eq!((fired.get(), world.now()), (3, Duration::from_secs(3)));
}

#[test]
fn a_deadlock_is_an_error_and_names_who_waits() {
    let sim = Simulation::new(1);
    sim.world().spawn_named("journal", std::future::pending());
    sim.world().spawn_named("done", async {});
    let error = sim.block_on(std::future::pending::<()>()).unwrap_err();
    assert!(matches!(&error, SimError::Deadlock { pending: 2, .. }));
    assert!(error.to_string().ends_with("main, journal"), "{error}");
    // The simulation goes on after it.
    assert_eq!(sim.block_on(async { 5 }), Ok(5));
}

#[test]
fn a_livelock_uses_up_the_budget() {
    let sim = Simulation::new(1);
    sim.set_step_budget(1000);
    sim.world().spawn(Box::pin(async {
        loop {
            yield_now().await;
        }
    }));
    let error = sim.block_on(std::future::pending::<()>()).unwrap_err();
    assert!(matches!(error, SimError::StepBudget { steps: 1000, .. }));
    // Each run has a budget of its own.
    assert_eq!(sim.block_on(async { 5 }), Ok(5));
}

#[test]
fn sleeping_for_nothing_lets_others_run() {
    let sim = Simulation::new(1);
    let world = sim.world();
    let flag = Rc::new(Cell::new(false));
    let set = flag.clone();
    world.spawn(Box::pin(async move { set.set(true) }));
    sim.block_on(async {
        while !flag.get() {
            world.sleep(Duration::ZERO).await;
        }
    })
    .unwrap();
}

#[test]
fn an_abandoned_timeout_does_not_move_the_clock() {
    let sim = Simulation::new(1);
    let world = sim.world();
    sim.block_on(async {
        let long = world.sleep(Duration::from_secs(3600));
        let short = world.sleep(Duration::from_secs(1));
        drop(select(long, short).await);
    })
    .unwrap();
    sim.run_until_idle().unwrap();
    assert_eq!(world.now(), Duration::from_secs(1));
}

#[test]
fn tasks_outlive_block_on_and_die_with_the_simulation() {
    let sim = Simulation::new(1);
    let world = sim.world();
    let alive = Rc::new(());
    let held = alive.clone();
    let task_world = world.clone();
    world.spawn(Box::pin(async move {
        task_world.sleep(Duration::from_secs(1)).await;
        std::future::pending::<()>().await;
        drop(held);
    }));
    sim.block_on(world.sleep(Duration::from_secs(2))).unwrap();
    assert_eq!(Rc::strong_count(&alive), 2);
    drop(sim);
    assert_eq!(Rc::strong_count(&alive), 1);
    // What is spawned afterwards is dropped at once.
    let held = alive.clone();
    world.spawn(Box::pin(async move { drop(held) }));
    assert_eq!(Rc::strong_count(&alive), 1);
}

#[test]
fn wall_clock_can_be_set() {
    let sim = Simulation::new(1);
    let world = sim.world();
    sim.run_for(Duration::from_secs(5)).unwrap();
    let wall = WallTime {
        seconds: -1,
        nanoseconds: 999_999_999,
    };
    world.set_wall(wall);
    assert_eq!(world.wall(), wall);
    sim.run_for(Duration::from_nanos(1)).unwrap();
    assert_eq!(world.wall(), WallTime::default());
}

#[test]
#[should_panic(expected = "from outside")]
fn a_run_inside_a_run_is_refused() {
    let sim = Rc::new(Simulation::new(1));
    let inner = sim.clone();
    let _ = sim.block_on(async move { inner.run_until_idle() });
}
