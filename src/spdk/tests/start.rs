//! Starting and stopping, each scenario in a process of its own, since SPDK starts once a process: configurations good
//! and bad, small pools, stopping in the middle of work, and what is left behind.
#![allow(clippy::print_stdout, reason = "a test reports on its standard output")]

mod common;

use std::cell::Cell;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{on, wait};
use runtime::{BlockDevice, BlockDeviceExt};
use spdk::{
    Access, Bdev, Config, ConfigError, Memory, Options, Polling, Reactors, Spdk, StartError,
};

/// In a child: the scenario it plays.
const SCENARIO: &str = "OCELOT_TEST_SCENARIO";

const SCENARIOS: &[(&str, fn())] = &[
    ("a_configuration_makes_devices", configured),
    ("the_shipped_malloc_configuration", shipped),
    ("a_missing_file_is_named", missing_file),
    ("a_failing_call_is_named", failing_call),
    ("an_unknown_method_is_named", unknown_method),
    ("a_subsystem_that_is_not_there_is_skipped", other_subsystem),
    ("too_few_huge_pages_say_what_to_do", no_huge_pages),
    ("requests_wait_when_pools_are_empty", small_pools),
    ("stopping_in_the_middle_of_work", stop_at_work),
    ("buffers_may_outlive_spdk", outliving),
    ("calls_to_a_stopped_reactor_fail", stopped),
    ("busy_polling", busy),
    ("a_pinned_reactor_stays_where_it_is", pinned),
    ("signals_are_left_alone", signals),
    ("rpc_py_can_ask", rpc_socket),
    ("flush_on_nvme_is_on", flush_is_on),
];

fn main() {
    if let Ok(scenario) = std::env::var(SCENARIO) {
        let (_, play) = SCENARIOS
            .iter()
            .find(|(name, _)| *name == scenario)
            .expect("a scenario of ours");
        // Not `exit`: it would take down SPDK's code under the reactors that run it.
        std::panic::set_hook(Box::new(|info| {
            eprintln!("{info}");
            std::process::abort();
        }));
        return play();
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let mut failed = Vec::new();
    for (name, _) in SCENARIOS {
        if common::listing() {
            println!("{name}: test");
            continue;
        }
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let before = Instant::now();
        print!("test {name} ... ");
        let output = Command::new("timeout")
            .args(["-s", "KILL", "60"])
            .arg(std::env::current_exe().expect("this binary"))
            .env(SCENARIO, name)
            .output()
            .expect("it runs");
        if output.status.success() {
            println!("ok ({:.2} s)", before.elapsed().as_secs_f64());
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            println!("FAILED: {}: {said}", output.status);
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        println!("failed: {}", failed.join(", "));
        std::process::exit(1);
    }
}

fn options(config: Config) -> Options {
    Options {
        memory: Memory::Ordinary { mib: 256 },
        config,
        ..Options::default()
    }
}

fn json(text: &str) -> Config {
    Config::Json(text.to_owned())
}

const MALLOC: &str = r#"{"subsystems": [{"subsystem": "bdev", "config": [
    {"method": "bdev_malloc_create", "params": {"name": "m", "num_blocks": 1024, "block_size": 4096}}]}]}"#;

fn configured() {
    let spdk = Spdk::start(options(json(MALLOC))).expect("it starts");
    let listed = wait(spdk.bdevs().list());
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].name.as_str(), listed[0].block_count),
        ("m", 1024)
    );
    wait(spdk.stop()).expect("it stops");
    wait(spdk.stop()).expect("it has stopped");
    spdk.stop_and_wait().expect("it has stopped");
}

fn shipped() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spdk-config/malloc.json");
    let spdk = Spdk::start(Options {
        memory: Memory::Ordinary { mib: 512 },
        ..options(Config::File(path.into()))
    })
    .expect("it starts");
    assert_eq!(wait(spdk.bdevs().list())[0].name, "malloc0");
}

fn error_of(config: Config) -> StartError {
    Spdk::start(options(config))
        .err()
        .expect("it does not start")
}

fn missing_file() {
    let error = error_of(Config::File("/nowhere/spdk.json".into()));
    assert!(error.to_string().contains("/nowhere/spdk.json"), "{error}");
    // Nothing of SPDK had run yet: a better configuration may still be tried.
    drop(Spdk::start(options(Config::None)).expect("it starts"));
}

fn failing_call() {
    let error = error_of(json(
        r#"{"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_malloc_create", "params": {"name": "a", "num_blocks": 8, "block_size": 512}},
            {"method": "bdev_aio_create", "params": {"name": "b", "filename": "/nowhere/image", "block_size": 512}}]}]}"#,
    ));
    let StartError::Config(ConfigError::Call { method, error, .. }) = error else {
        panic!("{error}");
    };
    assert_eq!(method, "bdev_aio_create");
    assert_eq!(error.errno(), Some(2), "{error}");
}

fn unknown_method() {
    let error = error_of(json(
        r#"{"subsystems": [{"subsystem": "bdev", "config": [{"method": "bdev_frobnicate"}]}]}"#,
    ));
    assert!(error.to_string().contains("bdev_frobnicate"), "{error}");
}

fn other_subsystem() {
    let text = r#"{"subsystems": [{"subsystem": "iscsi", "config": [{"method": "iscsi_set_options", "params": {}}]}]}"#;
    drop(Spdk::start(options(json(text))).expect("it starts"));
}

fn no_huge_pages() {
    let error = Spdk::start(Options {
        memory: Memory::HugePages { mib: 4 << 20 },
        ..Options::default()
    })
    .err()
    .expect("no machine has 4 TiB of them free");
    assert!(
        error.to_string().contains("spdk-config/hugepages 4194304"),
        "{error}"
    );
}

/// SPDK's pool holds fewer requests than are under way: the rest waits for room inside SPDK.
fn small_pools() {
    let text = r#"{"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_set_options", "params": {"bdev_io_pool_size": 128, "bdev_io_cache_size": 16}},
        {"method": "bdev_malloc_create", "params": {"name": "m", "num_blocks": 1024, "block_size": 4096}}]}]}"#;
    let spdk = Spdk::start(options(json(text))).expect("it starts");
    let done = on(spdk.reactor(0), || async {
        let device = Bdev::open("m", Access::ReadWrite).expect("opens");
        let done = Rc::new(Cell::new(0));
        for task in 0..500u64 {
            let (device, done) = (device.clone(), done.clone());
            spdk::spawn(async move {
                let mut buffer = device.allocate(4096);
                for round in 0..20u64 {
                    buffer.fill(task as u8);
                    let offset = (task * 20 + round) % 1024 * 4096;
                    let (back, result) = device.write(offset, buffer).await;
                    result.expect("written");
                    buffer = back;
                }
                done.set(done.get() + 1);
            });
        }
        while done.get() < 500 {
            spdk::sleep(Duration::from_millis(1)).await;
        }
        done.get()
    });
    assert_eq!(done, 500);
}

/// Tasks that would never end, requests under way, a call that waits: all are ended, and SPDK stops.
fn stop_at_work() {
    let spdk = Spdk::start(options(json(MALLOC))).expect("it starts");
    let reactor = spdk.reactor(0);
    for task in 0..100u64 {
        reactor
            .spawn(move || async move {
                let device = Bdev::open("m", Access::ReadWrite).expect("opens");
                let mut buffer = device.allocate(4096);
                loop {
                    let (back, result) = device.write(task * 4096, buffer).await;
                    result.expect("written");
                    buffer = back;
                }
            })
            .expect("spawned");
    }
    let waiting = reactor.call(std::future::pending::<()>);
    std::thread::sleep(Duration::from_millis(100));
    assert!(reactor.counters().requests > 1000);
    let before = Instant::now();
    spdk.stop_and_wait().expect("it stops");
    assert!(before.elapsed() < Duration::from_secs(5));
    assert_eq!(wait(waiting), Err(spdk::ReactorError::Gone));
}

fn outliving() {
    let spdk = Spdk::start(options(Config::None)).expect("it starts");
    let mut buffer = spdk::dma::allocate(4096).expect("memory");
    spdk.stop_and_wait().expect("it stops");
    buffer.fill(7);
    assert!(buffer.iter().all(|byte| *byte == 7));
    drop(buffer);
    assert!(spdk::dma::allocate(4096).is_none());
}

fn stopped() {
    let spdk = Spdk::start(options(Config::None)).expect("it starts");
    let reactor = spdk.reactor(0).clone();
    let bdevs = spdk.bdevs();
    drop(spdk);
    assert_eq!(reactor.spawn(|| async {}), Err(spdk::ReactorError::Gone));
    assert_eq!(
        wait(reactor.call(|| async { 1 })),
        Err(spdk::ReactorError::Gone)
    );
    assert!(wait(bdevs.create_malloc("x", 8, 512)).is_err());
    assert!(wait(bdevs.list()).is_empty());
}

fn busy() {
    let spdk = Spdk::start(Options {
        polling: Polling::Busy,
        ..options(json(MALLOC))
    })
    .expect("it starts");
    std::thread::sleep(Duration::from_millis(200));
    let counters = spdk.reactor(0).counters();
    assert_eq!(counters.sleeps, 0);
    assert!(counters.polls > 10_000, "{counters:?}");
}

fn pinned() {
    let allowed = status_line("Cpus_allowed_list:");
    let processor: u32 = allowed
        .split(['-', ','])
        .next_back()
        .and_then(|last| last.parse().ok())
        .expect("processors");
    let spdk = Spdk::start(Options {
        reactors: Reactors::Pinned(vec![processor]),
        ..options(json(MALLOC))
    })
    .expect("it starts");
    let there = on(spdk.reactor(0), || async {
        let task = std::fs::read_to_string("/proc/thread-self/status").expect("procfs");
        line(&task, "Cpus_allowed_list:")
    });
    assert_eq!(there, processor.to_string());
    assert_eq!(
        status_line("Cpus_allowed_list:"),
        allowed,
        "other threads move freely"
    );
}

fn status_line(name: &str) -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("procfs");
    line(&status, name)
}

fn line(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.expect("it is there").trim().to_owned()
}

/// Which signals have handlers is the program's business. (SIGBUS has one: a controller that is pulled out while its
/// registers are read.)
fn signals() {
    // Those a program can name: the two after them are the C library's own.
    let named = (1u64 << 31) - 1;
    let sigbus = 1 << (7 - 1);
    let caught = || {
        let mask = u64::from_str_radix(&status_line("SigCgt:"), 16).expect("a mask");
        mask & named & !sigbus
    };
    let before = caught();
    let spdk = Spdk::start(options(json(MALLOC))).expect("it starts");
    assert_eq!(caught(), before);
    spdk.stop_and_wait().expect("it stops");
    assert_eq!(caught(), before);
}

fn rpc_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("rpc.sock");
    let spdk = Spdk::start(Options {
        rpc_socket: Some(socket.clone()),
        ..options(json(MALLOC))
    })
    .expect("it starts");
    let prefix = std::env::var("SPDK_PREFIX").unwrap_or_else(|_| "/opt/spdk".to_owned());
    let output = Command::new(format!("{prefix}/bin/rpc.py"))
        .arg("-s")
        .arg(&socket)
        .arg("bdev_get_bdevs")
        .output()
        .expect("rpc.py runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("\"name\": \"m\""),
        "{output:?}"
    );
    spdk.stop_and_wait().expect("it stops");
    assert!(!socket.exists());
}

/// SPDK leaves it off, and would answer our journal's flushes without sending them.
fn flush_is_on() {
    let text = r#"{"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_nvme_set_options", "params": {"bdev_retry_count": 3}}]}]}"#;
    let spdk = Spdk::start(options(json(text))).expect("it starts");
    let config = wait(spdk.rpc().call(
        "framework_get_config",
        serde_json::json!({ "name": "bdev" }),
    ))
    .expect("answered");
    let set = config
        .as_array()
        .into_iter()
        .flatten()
        .find(|call| call["method"] == "bdev_nvme_set_options")
        .expect("its options");
    assert_eq!(set["params"]["enable_flush"], true);
    assert_eq!(set["params"]["bdev_retry_count"], 3);
}
