//! NVMe without NVMe hardware: SPDK's own target serves a namespace over TCP and over vfio-user (a real queue pair to an
//! emulated controller), and the block devices attached to it keep the same contract as any other.
//!
//! vfio-user needs huge pages, which the test sets up; it fails where it may not.
#![allow(clippy::print_stdout, reason = "a test reports on its standard output")]

mod common;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{cpu_time, on, wait};
use runtime::{BlockDevice, BlockDeviceExt, DeviceErrorKind, DeviceEvent};
use spdk::{Access, Attach, Bdev, Memory, NvmeAddress, Options, Spdk};

/// Set in the process that plays the other host: the socket folder.
const CHILD: &str = "OCELOT_TEST_OTHER_HOST";
const SUBSYSTEM: &str = "nqn.2026-01.io.ocelot:test";

static TARGET: OnceLock<Target> = OnceLock::new();

fn main() {
    if let Ok(folder) = std::env::var(CHILD) {
        return child(&folder);
    }
    // Our 256 MiB, the target's 256, the other host's 128.
    let huge = common::huge_pages(768);
    assert!(
        huge || common::listing(),
        "no huge pages: run spdk-config/hugepages 768 as root"
    );
    if !common::listing() {
        let target = Target::start(huge);
        assert!(TARGET.set(target).is_ok(), "one target");
    }
    let options = Options {
        memory: Memory::Auto { mib: 256 },
        ..Options::default()
    };
    let cases: [common::Case; 7] = [
        ("nvme_tcp_keeps_the_contract", tcp_contract),
        ("nobody_there", nobody_there),
        ("nvme_vfio_user_keeps_the_contract", vfio_user_contract),
        ("two_hosts_see_one_disk", two_hosts),
        ("idle_with_nvme_attached", idle),
        ("detaching_is_a_hot_removal", detach),
        ("a_dead_target_fails_requests", dead_target),
    ];
    let passed = common::run(options, &cases);
    if let Some(target) = TARGET.get() {
        target.kill();
    }
    std::process::exit(i32::from(!passed));
}

/// A running `nvmf_tgt`; ended when the tests end, however they do.
struct Target {
    child: std::sync::Mutex<Child>,
    folder: tempfile::TempDir,
    port: u16,
}

impl Target {
    fn start(huge: bool) -> Target {
        let prefix = std::env::var("SPDK_PREFIX").unwrap_or_else(|_| "/opt/spdk".to_owned());
        let folder = tempfile::tempdir().expect("a folder");
        let vfio_user = folder.path().join("vfio-user");
        std::fs::create_dir(&vfio_user).expect("a folder for sockets");
        let port = free_port();
        let config = configuration(port, huge.then_some(&vfio_user));
        let file = folder.path().join("target.json");
        std::fs::write(&file, config).expect("its configuration");
        let log = std::fs::File::create(folder.path().join("log")).expect("its log");
        // It dies with us, also when a panic on a reactor aborts the process.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(format!("{prefix}/bin/nvmf_tgt"))
            .args(["-m", "0x1", "--disable-cpumask-locks", "-s", "256"])
            .arg("-r")
            .arg(folder.path().join("rpc.sock"))
            .arg("-c")
            .arg(&file)
            .stdout(log.try_clone().expect("its log"))
            .stderr(log)
            .stdin(Stdio::null());
        if huge {
            command.args(["-g", "--env-context", "--in-memory"]);
        } else {
            command.arg("--no-huge");
        }
        let child = command.spawn().expect("nvmf_tgt starts");
        let target = Target {
            child: std::sync::Mutex::new(child),
            folder,
            port,
        };
        target.wait_until_it_listens();
        target
    }

    fn wait_until_it_listens(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log =
                || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let mut child = self.child.lock().expect("not poisoned");
            if let Some(status) = child.try_wait().expect("it can be asked") {
                panic!("nvmf_tgt ended with {status}: {}", log());
            }
            assert!(
                Instant::now() < until,
                "nvmf_tgt does not listen: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn vfio_user(&self) -> PathBuf {
        self.folder.path().join("vfio-user")
    }

    fn kill(&self) {
        let mut child = self.child.lock().expect("not poisoned");
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").port()
}

/// `spdk-config/target.json` with this test's port and folder, so that the file we ship is the one that is tried.
fn configuration(port: u16, vfio_user: Option<&PathBuf>) -> String {
    let shipped = include_str!("../../../spdk-config/target.json");
    let mut config: serde_json::Value = serde_json::from_str(shipped).expect("it is JSON");
    let calls = config["subsystems"][1]["config"]
        .as_array_mut()
        .expect("calls");
    let is_vfio_user = |call: &serde_json::Value| call.to_string().contains("VFIOUSER");
    if vfio_user.is_none() {
        calls.retain(|call| !is_vfio_user(call));
    }
    for call in calls {
        let address = &mut call["params"]["listen_address"];
        if address.is_object() {
            match (address["trtype"].as_str(), vfio_user) {
                (Some("VFIOUSER"), Some(folder)) => {
                    address["traddr"] = folder.to_string_lossy().into_owned().into();
                }
                _ => address["trsvcid"] = port.to_string().into(),
            }
        } else if call["params"].get("listen_address").is_some() {
            call["params"]
                .as_object_mut()
                .expect("an object")
                .remove("listen_address");
        }
    }
    config
        .to_string()
        .replace("nqn.2026-01.io.ocelot:disk0", SUBSYSTEM)
}

fn target() -> &'static Target {
    TARGET.get().expect("it was started")
}

fn tcp(name: &str) -> Attach {
    Attach {
        name: name.to_owned(),
        address: NvmeAddress::Tcp {
            host: "127.0.0.1".to_owned(),
            port: target().port,
            subsystem: SUBSYSTEM.to_owned(),
        },
        host: Some(format!("nqn.2026-01.io.ocelot:host-{name}")),
    }
}

fn vfio_user(name: &str) -> Attach {
    vfio_user_at(name, target().vfio_user().to_string_lossy().into_owned())
}

fn vfio_user_at(name: &str, folder: String) -> Attach {
    Attach {
        name: name.to_owned(),
        address: NvmeAddress::VfioUser {
            folder,
            subsystem: SUBSYSTEM.to_owned(),
        },
        host: None,
    }
}

fn attach(spdk: &Spdk, attach: &Attach) {
    let names = wait(spdk.bdevs().attach_nvme(attach)).expect("attached");
    assert_eq!(names, [format!("{}n1", attach.name)]);
}

fn detach_quietly(spdk: &Spdk, name: &str) {
    wait(spdk.bdevs().detach_nvme(name)).expect("detached");
}

fn open(name: &str) -> Rc<Bdev> {
    Bdev::open(name, Access::ReadWrite).expect("device opens")
}

fn keeps_the_contract(spdk: &Spdk, name: &'static str) {
    let verdict = on(spdk.reactor(0), move || async move {
        let device = open(name);
        assert_eq!(device.info().block_size, 4096);
        let host = spdk::host().expect("on a reactor");
        runtime::contract::run(device, &*host, 0..16 << 20, 7).await
    });
    verdict.unwrap_or_else(|violation| panic!("{violation}"));
}

fn tcp_contract(spdk: &Spdk) {
    attach(spdk, &tcp("tcp"));
    keeps_the_contract(spdk, "tcpn1");
    detach_quietly(spdk, "tcp");
}

fn vfio_user_contract(spdk: &Spdk) {
    attach(spdk, &vfio_user("vfu"));
    keeps_the_contract(spdk, "vfun1");
    detach_quietly(spdk, "vfu");
}

/// Another process, attached by vfio-user, writes; we, attached by TCP, read it.
fn two_hosts(spdk: &Spdk) {
    let status = Command::new(std::env::current_exe().expect("this binary"))
        .env(CHILD, target().vfio_user())
        .status()
        .expect("the other host runs");
    assert!(status.success(), "the other host: {status}");
    attach(spdk, &tcp("two"));
    on(spdk.reactor(0), || async {
        let device = open("twon1");
        let (buffer, result) = device.read(1 << 20, device.allocate(1 << 20)).await;
        result.expect("read");
        for (index, block) in buffer.chunks(4096).enumerate() {
            assert!(block.iter().all(|byte| *byte == index as u8));
        }
    });
    detach_quietly(spdk, "two");
}

/// The other host.
fn child(folder: &str) {
    let options = Options {
        memory: Memory::HugePages { mib: 128 },
        ..Options::default()
    };
    let spdk = Spdk::start(options).expect("a second SPDK beside the first");
    let mut there = vfio_user_at("child", folder.to_owned());
    there.host = Some("nqn.2026-01.io.ocelot:host-child".to_owned());
    attach(&spdk, &there);
    on(spdk.reactor(0), || async {
        let device = open("childn1");
        for block in 0..256u64 {
            let mut buffer = device.allocate(4096);
            buffer.fill(block as u8);
            let (_, result) = device.write((1 << 20) + block * 4096, buffer).await;
            result.expect("written");
        }
        device.flush().await.expect("flushed");
    });
    // The controller stays attached: stopping takes it down.
    spdk.stop_and_wait().expect("stopped");
}

fn idle(spdk: &Spdk) {
    attach(spdk, &vfio_user("idle"));
    let reactor = spdk.reactor(0);
    reactor
        .spawn(|| async {
            let _device = open("idlen1");
            spdk::sleep(Duration::from_secs(5)).await;
        })
        .expect("spawned");
    std::thread::sleep(Duration::from_millis(300));
    let (before, clock) = (cpu_time(), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let used = (cpu_time() - before).as_secs_f64() / clock.elapsed().as_secs_f64() * 100.0;
    let mut latencies: Vec<Duration> = (0..20)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(17));
            let start = Instant::now();
            on(reactor, || async {
                let device = open("idlen1");
                device.read(0, device.allocate(4096)).await.1.expect("read");
            });
            start.elapsed()
        })
        .collect();
    latencies.sort();
    print!(
        "[idle: {used:.2} % of a core; first request: median {:?}, worst {:?}] ",
        latencies[10], latencies[19]
    );
    assert!(used < 5.0, "idle takes {used:.2} % of a core");
    on(reactor, || spdk::sleep(Duration::from_secs(2)));
    detach_quietly(spdk, "idle");
}

fn detach(spdk: &Spdk) {
    attach(spdk, &vfio_user("away"));
    let admin = spdk.bdevs();
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    on(spdk.reactor(0), move || async move {
        let device = open("awayn1");
        let _subscription = device.subscribe(Rc::new(move |event| {
            tell.store(event == DeviceEvent::Removed, Ordering::SeqCst);
        }));
        admin.detach_nvme("away").await.expect("detached");
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let (_, result) = device.read(0, device.allocate(4096)).await;
            match result {
                Err(error) if error.kind == DeviceErrorKind::Removed => break,
                outcome => assert!(Instant::now() < until, "still there: {outcome:?}"),
            }
            spdk::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(told.load(Ordering::SeqCst));
}

fn nobody_there(spdk: &Spdk) {
    let mut nowhere = tcp("nowhere");
    if let NvmeAddress::Tcp { port, .. } = &mut nowhere.address {
        *port = free_port();
    }
    let error = wait(spdk.bdevs().attach_nvme(&nowhere)).expect_err("nobody listens");
    assert!(error.errno().is_some(), "{error}");
}

/// The last case: it kills the target. Requests end with an error; nothing hangs and nothing dies with it.
fn dead_target(spdk: &Spdk) {
    let options = serde_json::json!({
        "name": "dying", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
        "trsvcid": target().port.to_string(), "subnqn": SUBSYSTEM,
        "ctrlr_loss_timeout_sec": 2, "reconnect_delay_sec": 1, "fast_io_fail_timeout_sec": 1,
    });
    wait(spdk.bdevs().call("bdev_nvme_attach_controller", options)).expect("attached");
    on(spdk.reactor(0), || async {
        let device = open("dyingn1");
        device
            .read(0, device.allocate(4096))
            .await
            .1
            .expect("alive");
        target().kill();
        let requests: Vec<_> = (0..64u64)
            .map(|block| device.write(block * 4096, device.allocate(4096)))
            .collect();
        for request in requests {
            let (buffer, result) = request.await;
            assert_eq!(buffer.len(), 4096);
            let error = result.expect_err("nobody is there");
            assert!(
                matches!(
                    error.kind,
                    DeviceErrorKind::Aborted | DeviceErrorKind::Failed | DeviceErrorKind::Removed
                ),
                "{error}"
            );
        }
    });
}
