//! One process, one SPDK: each test binary starts it once and runs its cases in turn. `cargo test -- WORD` runs the
//! cases whose name has WORD.
#![allow(dead_code, reason = "each binary uses a part")]
#![allow(clippy::print_stdout, reason = "a test reports on its standard output")]

use std::future::Future;
use std::process::Command;
use std::time::{Duration, Instant};

use spdk::{Options, ReactorHandle, Spdk};

pub type Case = (&'static str, fn(&Spdk));

/// Runs the cases; ends the process with status 1 if one fails.
pub fn main(options: Options, cases: &[Case]) {
    std::process::exit(i32::from(!run(options, cases)));
}

/// Runs the cases; false if one fails.
pub fn run(options: Options, cases: &[Case]) -> bool {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(match std::env::var("SPDK_TEST_LOG").as_deref() {
            Ok("debug") => tracing::Level::DEBUG,
            _ => tracing::Level::ERROR,
        })
        .init();
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    if listing() {
        for (name, _) in cases {
            println!("{name}: test");
        }
        return true;
    }
    watchdog();
    let spdk = Spdk::start(options).expect("SPDK starts");
    let mut failed = Vec::new();
    for (name, case) in cases {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let before = Instant::now();
        print!("test {name} ... ");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&spdk)));
        match outcome {
            Ok(()) => println!("ok ({:.2} s)", before.elapsed().as_secs_f64()),
            Err(_) => {
                println!("FAILED");
                failed.push(*name);
            }
        }
    }
    spdk.stop_and_wait().expect("SPDK stops");
    if !failed.is_empty() {
        println!("failed: {}", failed.join(", "));
    }
    failed.is_empty()
}

/// Only the names of the cases are wanted.
pub fn listing() -> bool {
    std::env::args().any(|word| word == "--list")
}

/// A test that hangs must end, and say so.
fn watchdog() {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(300));
        eprintln!("the tests hang");
        std::process::abort();
    });
}

/// Runs a future on a reactor and waits for it. A panic in it ends the process.
pub fn on<F, Fut, T>(reactor: &ReactorHandle, make: F) -> T
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
    T: Send + 'static,
{
    reactor.call_and_wait(make).expect("the reactor runs")
}

/// Runs a `Send` future of the management interface to its end on this thread.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let waker = std::task::Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

struct Unpark(std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

/// Makes so many MiB of huge pages free, if this process may.
pub fn huge_pages(mib: u32) -> bool {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spdk-config/hugepages");
    Command::new(script)
        .arg(mib.to_string())
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Processor time this process has used.
pub fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").expect("procfs is there");
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .expect("the name ends")
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 =
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}
