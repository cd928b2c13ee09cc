//! Exported devices: a disk of ours behind SPDK's block layer, from the same reactor, from another one, over NVMe/TCP to
//! this very process, and over vfio-user to another one. Needs neither huge pages nor root, but for vfio-user, which is left out without.
#![allow(clippy::print_stdout, reason = "a test reports on its standard output")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{on, wait};
use runtime::{BlockDevice, BlockDeviceExt, Buffer, DeviceErrorKind, DeviceEvent, Host};
use serde_json::json;
use spdk::{
    Access, Attach, Bdev, Disk, Export, ExportCounters, ExportError, ExportOptions, Exposed,
    Listener, Memory, NvmeAddress, Options, Reactors, Spdk, Subsystem,
};

fn main() {
    if let Ok(folder) = std::env::var(HOST_OF) {
        return be_host(folder);
    }
    // vfio-user shares memory as files, which only huge pages are.
    let huge = common::huge_pages(768);
    let options = Options {
        memory: if huge {
            Memory::HugePages { mib: 384 }
        } else {
            Memory::Ordinary { mib: 512 }
        },
        reactors: Reactors::Floating(2),
        ..Options::default()
    };
    let mut cases: Vec<common::Case> = vec![
        ("an_export_keeps_the_contract", contract_here),
        ("from_another_reactor_too", contract_across),
        ("over_tcp_too", contract_tcp),
        ("names_and_sizes_are_checked", refused),
        ("failures_keep_their_kind", failures),
        ("read_only_stays_so", read_only),
        ("pieces_are_put_together", pieces),
        ("growth_is_told_and_shrinking_refused", resizes),
        ("it_goes_when_its_requests_are_done", removal),
        ("reset_waits_for_requests", reset),
        ("what_is_inside_is_nobodys_business", partitions),
        (
            "a_write_that_must_be_durable_is_flushed",
            forced_unit_access,
        ),
        ("nothing_is_allocated_for_a_request", no_allocations),
        ("hosts_of_a_target_that_goes_are_told", concealed),
    ];
    if huge || common::listing() {
        cases.push(("over_vfio_user_too", contract_vfio_user));
        cases.push(("a_dead_hosts_memory_stays_until_answered", dead_host));
    }
    // Last: it is still there, with a request under way, when SPDK stops.
    cases.push(("a_stop_ends_what_is_under_way", left_behind));
    common::main(options, &cases);
}

const BLOCK: u32 = 512;
const SIZE: usize = 16 << 20;
const UUID: &str = "0c3e8f4e-6f1c-4d0e-9d6f-3f4a5b6c7d8e";

/// A disk of memory that can be made slow and faulty.
#[derive(Default)]
struct MemoryDisk {
    bytes: RefCell<Vec<u8>>,
    delay: Cell<Duration>,
    fault: Cell<Option<DeviceErrorKind>>,
}

impl MemoryDisk {
    fn new(size: usize) -> Rc<Self> {
        Rc::new(MemoryDisk {
            bytes: RefCell::new(vec![0; size]),
            ..MemoryDisk::default()
        })
    }

    async fn pass(&self) -> Result<(), DeviceErrorKind> {
        if !self.delay.get().is_zero() {
            spdk::sleep(self.delay.get()).await;
        }
        self.fault.get().map_or(Ok(()), Err)
    }
}

/// As the test and the device share it.
struct Shared(Rc<MemoryDisk>);

impl Disk for Shared {
    async fn read(&self, offset: u64, mut buffer: Buffer) -> (Buffer, Result<(), DeviceErrorKind>) {
        let passed = self.0.pass().await;
        if passed.is_ok() {
            let at = offset as usize;
            let bytes = self.0.bytes.borrow();
            let len = buffer.len();
            buffer.copy_from_slice(&bytes[at..at + len]);
        }
        (buffer, passed)
    }

    async fn write(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), DeviceErrorKind>) {
        let passed = self.0.pass().await;
        if passed.is_ok() {
            let at = offset as usize;
            self.0.bytes.borrow_mut()[at..at + buffer.len()].copy_from_slice(&buffer);
        }
        (buffer, passed)
    }

    async fn flush(&self) -> Result<(), DeviceErrorKind> {
        self.0.pass().await
    }

    async fn unmap(&self, offset: u64, len: u64) -> Result<(), DeviceErrorKind> {
        self.write_zeroes(offset, len).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DeviceErrorKind> {
        self.0.pass().await?;
        let at = offset as usize;
        self.0.bytes.borrow_mut()[at..at + len as usize].fill(0);
        Ok(())
    }
}

fn options(name: &str) -> ExportOptions {
    ExportOptions {
        name: name.to_owned(),
        block_size: BLOCK,
        block_count: SIZE as u64 / u64::from(BLOCK),
        read_only: false,
        volatile_cache: true,
        supports_unmap: true,
        supports_write_zeroes: true,
        foreign_memory: true,
    }
}

thread_local! {
    /// The exports of reactor 0, for the cases that have them across calls.
    static EXPORTED: RefCell<Vec<(Export, Rc<MemoryDisk>)>> = const { RefCell::new(Vec::new()) };
}

async fn export(options: ExportOptions) -> (Export, Rc<MemoryDisk>) {
    let disk = MemoryDisk::new(SIZE);
    let export = Export::register(Shared(disk.clone()), options)
        .await
        .expect("exported");
    (export, disk)
}

/// Exports a disk from reactor 0, until [`end`].
fn start(spdk: &Spdk, name: &'static str) -> Arc<ExportCounters> {
    on(spdk.reactor(0), move || async move {
        let made = export(options(name)).await;
        let counters = made.0.counters().clone();
        EXPORTED.with_borrow_mut(|all| all.push(made));
        counters
    })
}

fn end(spdk: &Spdk, name: &'static str) {
    on(spdk.reactor(0), move || async move {
        let made = EXPORTED.with_borrow_mut(|all| {
            let place = all.iter().position(|(export, _)| export.name() == name);
            all.swap_remove(place.expect("it was exported"))
        });
        made.0.unregister().await;
        assert!(spdk::list().iter().all(|one| one.name != name));
    });
}

fn contract(spdk: &Spdk, reactor: usize, name: &'static str) {
    let verdict = on(spdk.reactor(reactor), move || async move {
        let device = Bdev::open(name, Access::ReadWrite).expect("opens");
        let host = spdk::host().expect("on a reactor");
        runtime::contract::run(device, &*host, 4 << 20..SIZE as u64, 7).await
    });
    verdict.unwrap_or_else(|violation| panic!("{violation}"));
}

fn contract_here(spdk: &Spdk) {
    let counters = start(spdk, "here");
    contract(spdk, 0, "here");
    end(spdk, "here");
    let figures = counters.figures();
    assert!(figures.reads > 100 && figures.writes > 100, "{figures:?}");
    assert_eq!(figures.in_flight, 0);
}

fn contract_across(spdk: &Spdk) {
    start(spdk, "across");
    contract(spdk, 1, "across");
    end(spdk, "across");
}

fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| socket.local_addr())
        .expect("a free port")
}

fn subsystem(name: &str, listener: Listener) -> Subsystem {
    Subsystem {
        nqn: format!("nqn.2026-01.io.ocelot:{name}"),
        serial: "TEST".into(),
        model: "Ocelot file".into(),
        uuid: UUID.into(),
        bdev: name.into(),
        listener,
    }
}

fn expose_tcp(spdk: &Spdk, name: &str) -> Exposed {
    let port = free_port();
    let exposed = wait(spdk.nvmf().expose(&subsystem(name, Listener::Tcp(port)))).expect("exposed");
    let attach = Attach {
        name: format!("{name}-back"),
        address: NvmeAddress::Tcp {
            host: port.ip().to_string(),
            port: port.port(),
            subsystem: exposed.nqn().to_owned(),
        },
        host: None,
    };
    let found = wait(spdk.bdevs().attach_nvme(&attach)).expect("attached");
    assert_eq!(found, [format!("{name}-backn1")]);
    exposed
}

fn contract_tcp(spdk: &Spdk) {
    let counters = start(spdk, "tcp");
    let exposed = expose_tcp(spdk, "tcp");
    contract(spdk, 1, "tcp-backn1");
    wait(spdk.bdevs().detach_nvme("tcp-back")).expect("detached");
    wait(exposed.conceal()).expect("concealed");
    end(spdk, "tcp");
    let figures = counters.figures();
    assert!(figures.flushes > 0 && figures.unmaps > 0, "{figures:?}");
}

/// The host is another process: SPDK's driver waits for the target while it attaches.
fn contract_vfio_user(spdk: &Spdk) {
    let counters = start(spdk, "vfio");
    let folder = tempfile::tempdir().expect("a folder");
    let listener = Listener::VfioUser {
        folder: folder.path().to_str().expect("UTF-8").to_owned(),
    };
    let exposed = wait(spdk.nvmf().expose(&subsystem("vfio", listener))).expect("exposed");
    let host = Command::new(std::env::current_exe().expect("this program"))
        .env(HOST_OF, folder.path())
        .status()
        .expect("it runs");
    assert!(host.success(), "{host}");
    wait(exposed.conceal()).expect("concealed");
    end(spdk, "vfio");
    let figures = counters.figures();
    assert!(figures.reads > 100 && figures.writes > 100, "{figures:?}");
}

/// A host that is killed takes its memory with it, and SPDK's target lets it go while requests are in it.
fn dead_host(spdk: &Spdk) {
    let counters = start(spdk, "dies");
    on(spdk.reactor(0), || async {
        EXPORTED.with_borrow(|all| {
            let (_, disk) = all.last().expect("it was exported");
            disk.delay.set(Duration::from_millis(300));
        });
    });
    let folder = tempfile::tempdir().expect("a folder");
    let listener = Listener::VfioUser {
        folder: folder.path().to_str().expect("UTF-8").to_owned(),
    };
    let exposed = wait(spdk.nvmf().expose(&subsystem("dies", listener))).expect("exposed");
    let host = Command::new(std::env::current_exe().expect("this program"))
        .env(HOST_OF, folder.path())
        .env(HOST_DIES, "1")
        .status()
        .expect("it runs");
    assert!(!host.success(), "{host}");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while counters.figures().in_flight > 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "requests of a dead host"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let figures = counters.figures();
    assert!(figures.writes >= 32, "{figures:?}");
    wait(exposed.conceal()).expect("concealed");
    // What the disk was given is what the host had in its memory.
    on(spdk.reactor(0), || async {
        EXPORTED.with_borrow(|all| {
            let (_, disk) = all.last().expect("it was exported");
            let bytes = disk.bytes.borrow();
            assert!(bytes[..32 * 4096].iter().all(|byte| *byte == 0xA5));
        });
    });
    end(spdk, "dies");
}

/// The host ends in the middle of its requests.
const HOST_DIES: &str = "OCELOT_TEST_VFIO_USER_HOST_DIES";

fn die_writing(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let device = Bdev::open("farn1", Access::ReadWrite).expect("opens");
        let writes: Vec<_> = (0..32)
            .map(|index| {
                let mut buffer = device.allocate(4096);
                buffer.fill(0xA5);
                device.write(index * 4096, buffer)
            })
            .collect();
        spdk::sleep(Duration::from_millis(100)).await;
        drop(writes);
        std::process::abort();
    });
}

/// Names the socket folder, for the process that is the host.
const HOST_OF: &str = "OCELOT_TEST_VFIO_USER_HOST";

fn be_host(folder: String) {
    let spdk = Spdk::start(Options {
        memory: Memory::HugePages { mib: 256 },
        ..Options::default()
    })
    .expect("SPDK starts");
    let dies = std::env::var(HOST_DIES).is_ok();
    let attach = Attach {
        name: "far".into(),
        address: NvmeAddress::VfioUser {
            folder,
            subsystem: format!(
                "nqn.2026-01.io.ocelot:{}",
                if dies { "dies" } else { "vfio" }
            ),
        },
        host: None,
    };
    wait(spdk.bdevs().attach_nvme(&attach)).expect("attached");
    if dies {
        die_writing(&spdk);
    }
    contract(&spdk, 0, "farn1");
    wait(spdk.bdevs().detach_nvme("far")).expect("detached");
    spdk.stop_and_wait().expect("SPDK stops");
}

fn refused(spdk: &Spdk) {
    start(spdk, "taken");
    on(spdk.reactor(0), || async {
        let try_one = async |options: ExportOptions| {
            Export::register(Shared(MemoryDisk::new(SIZE)), options)
                .await
                .expect_err("refused")
        };
        let error = try_one(options("taken")).await;
        assert_eq!(error, ExportError::Exists("taken".into()));
        for broken in [
            options(""),
            options("a\0b"),
            ExportOptions {
                block_size: 520,
                ..options("odd")
            },
            ExportOptions {
                block_count: 0,
                ..options("none")
            },
            ExportOptions {
                block_count: u64::MAX,
                ..options("huge")
            },
        ] {
            let error = try_one(broken).await;
            assert!(matches!(error, ExportError::Invalid { .. }), "{error}");
        }
    });
    end(spdk, "taken");
}

fn failures(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let (export, disk) = export(options("faulty")).await;
        let device = Bdev::open("faulty", Access::ReadWrite).expect("opens");
        for kind in [
            DeviceErrorKind::Failed,
            DeviceErrorKind::OutOfRange,
            DeviceErrorKind::ReadOnly,
            DeviceErrorKind::NoSpace,
            DeviceErrorKind::Reserved,
            DeviceErrorKind::Aborted,
            DeviceErrorKind::Unsupported,
        ] {
            disk.fault.set(Some(kind));
            let (buffer, result) = device.write(0, device.allocate(4096)).await;
            assert_eq!(result.expect_err("faulty").kind, kind);
            let (_, result) = device.read(0, buffer).await;
            assert_eq!(result.expect_err("faulty").kind, kind);
            assert_eq!(device.flush().await.expect_err("faulty").kind, kind);
            assert_eq!(device.unmap(0, 512).await.expect_err("faulty").kind, kind);
        }
        disk.fault.set(None);
        device.flush().await.expect("whole again");
        assert_eq!(export.counters().figures().errors, 7 * 4);
        drop(device);
        export.unregister().await;
    });
}

fn read_only(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let (export, _disk) = export(ExportOptions {
            read_only: true,
            ..options("ro")
        })
        .await;
        let refused = Bdev::open("ro", Access::ReadWrite).expect_err("refused");
        assert!(refused.to_string().contains("written"), "{refused}");
        let device = Bdev::open("ro", Access::ReadOnly).expect("opens");
        let (_, result) = device.read(0, device.allocate(512)).await;
        result.expect("read");
        drop(device);
        export.unregister().await;
    });
}

fn pieces(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let (export, disk) = export(options("pieces")).await;
        let device = Bdev::open("pieces", Access::ReadWrite).expect("opens");
        let mut all: Vec<Buffer> = (0..8).map(|_| device.allocate(512)).collect();
        // Never neighbours.
        let mut odd = 0;
        all.retain(|_| {
            odd += 1;
            odd % 2 == 0
        });
        for (index, piece) in all.iter_mut().enumerate() {
            piece.fill(index as u8 + 1);
        }
        let done = device.writev(1024, all).await;
        done.result.expect("written");
        for (index, piece) in disk.bytes.borrow()[1024..1024 + 2048]
            .chunks(512)
            .enumerate()
        {
            assert!(piece.iter().all(|byte| *byte == index as u8 + 1));
        }
        let mut back = done.buffers.into_vec();
        back.iter_mut().for_each(|piece| piece.fill(0));
        let done = device.readv(1024, back).await;
        done.result.expect("read");
        for (index, piece) in done.buffers.as_slice().iter().enumerate() {
            assert!(piece.iter().all(|byte| *byte == index as u8 + 1));
        }
        assert_eq!(export.counters().figures().copied, 2);
        drop(device);
        export.unregister().await;
    });
}

fn resizes(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let (mut export, disk) = export(options("grows")).await;
        let blocks = export.options().block_count;
        let device = Bdev::open("grows", Access::ReadWrite).expect("opens");
        let told = Rc::new(Cell::new(0));
        let heard = told.clone();
        let _subscription = device.subscribe(Rc::new(move |event| {
            if let DeviceEvent::Resized { block_count } = event {
                heard.set(block_count);
            }
        }));
        disk.bytes.borrow_mut().resize(SIZE * 2, 0);
        export.resize(blocks * 2).await.expect("grown");
        while told.get() == 0 {
            spdk::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(told.get(), blocks * 2);
        let end = SIZE as u64 * 2 - 512;
        let (_, result) = device.write(end, device.allocate(512)).await;
        result.expect("written at the new end");
        let error = export.resize(blocks).await.expect_err("it is open");
        assert!(matches!(error, ExportError::InUse { .. }), "{error}");
        drop(device);
        // The device closes by a message.
        spdk::sleep(Duration::from_millis(20)).await;
        export.resize(blocks).await.expect("shrunk");
        export.unregister().await;
    });
}

fn removal(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let (export, disk) = export(options("goes")).await;
        let device = Bdev::open("goes", Access::ReadWrite).expect("opens");
        disk.delay.set(Duration::from_millis(100));
        let buffers: Vec<Buffer> = (0..16)
            .map(|index| {
                let mut buffer = device.allocate(4096);
                buffer.fill(index + 1);
                buffer
            })
            .collect();
        let writes: Vec<_> = buffers
            .into_iter()
            .enumerate()
            .map(|(index, buffer)| device.write(index as u64 * 4096, buffer))
            .collect();
        let before = std::time::Instant::now();
        export.unregister().await;
        assert!(before.elapsed() >= Duration::from_millis(90));
        for write in writes {
            write.await.1.expect("written before the device went");
        }
        for (index, block) in disk.bytes.borrow().chunks(4096).take(16).enumerate() {
            assert!(block.iter().all(|byte| *byte == index as u8 + 1));
        }
        spdk::sleep(Duration::from_millis(5)).await;
        assert_eq!(Rc::strong_count(&disk), 1, "nobody serves it any more");
        let (_, result) = device.read(0, Buffer::zeroed(512)).await;
        assert_eq!(result.expect_err("gone").kind, DeviceErrorKind::Removed);
    });
}

fn reset(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let (export, disk) = export(options("resets")).await;
        let device = Bdev::open("resets", Access::ReadWrite).expect("opens");
        disk.delay.set(Duration::from_millis(50));
        let write = device.write(0, device.allocate(4096));
        let before = std::time::Instant::now();
        device.reset().await.expect("reset");
        assert!(before.elapsed() >= Duration::from_millis(45), "it waits");
        write.await.1.expect("written");
        disk.delay.set(Duration::ZERO);
        device.flush().await.expect("it works on");
        assert_eq!(export.counters().figures().resets, 1);
        drop(device);
        export.unregister().await;
    });
}

/// SPDK's modules look for partition tables and the like on new devices. A disk image has one, and it is the guest's.
fn partitions(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let disk = MemoryDisk::new(SIZE);
        guid_partition_table(&mut disk.bytes.borrow_mut());
        let export = Export::register(Shared(disk), options("image"))
            .await
            .expect("exported");
        spdk::sleep(Duration::from_millis(50)).await;
        let found: Vec<_> = spdk::list().into_iter().map(|one| one.name).collect();
        assert_eq!(found, ["image"]);
        assert_eq!(export.counters().figures().reads, 0, "nobody looked");
        let device = Bdev::open("image", Access::ReadWrite).expect("nobody claims it");
        drop(device);
        export.unregister().await;
    });
}

/// A protective MBR and a GPT header with its signature: what SPDK's gpt module looks for.
fn guid_partition_table(bytes: &mut [u8]) {
    bytes[450] = 0xEE;
    bytes[454] = 1;
    bytes[458..462].fill(0xFF);
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    bytes[512..520].copy_from_slice(b"EFI PART");
}

/// Hosts ask for it by a bit of the command, which SPDK's target passes on and does not act on.
fn forced_unit_access(spdk: &Spdk) {
    let counters = start(spdk, "fua");
    let exposed = expose_tcp(spdk, "fua");
    let write = |flags: u32| {
        let mut command = [0u8; 64];
        command[0] = 0x01;
        command[4] = 1;
        command[48..52].copy_from_slice(&flags.to_le_bytes());
        let params = json!({
            "name": "fua-back",
            "cmd_type": "io",
            "data_direction": "h2c",
            "cmdbuf": base64_url(&command),
            "data_len": 512,
            "data": base64_url(&[7; 512]),
        });
        wait(spdk.rpc().call("bdev_nvme_send_cmd", params)).expect("the command is sent");
    };
    write(0);
    assert_eq!(counters.figures().writes, 1);
    assert_eq!(counters.figures().flushes, 0);
    write(1 << 30);
    assert_eq!(counters.figures().writes, 2);
    assert_eq!(counters.figures().durable_writes, 1);
    wait(spdk.bdevs().detach_nvme("fua-back")).expect("detached");
    wait(exposed.conceal()).expect("concealed");
    end(spdk, "fua");
}

fn base64_url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut bits = 0u32;
        for index in 0..3 {
            bits = bits << 8 | u32::from(group.get(index).copied().unwrap_or(0));
        }
        for index in 0..4 {
            if index <= group.len() {
                let digit = bits >> (18 - 6 * index) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// Counts what each thread asks of the heap.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

fn no_allocations(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let (export, _disk) = export(options("steady")).await;
        let device = Bdev::open("steady", Access::ReadWrite).expect("opens");
        let mut buffer = device.allocate(4096);
        let mut counted = 0;
        for round in 0..2000 {
            if round == 1000 {
                counted = ALLOCATIONS.get();
            }
            let (back, result) = device.write(round % 64 * 4096, buffer).await;
            result.expect("written");
            let (back, result) = device.read(0, back).await;
            result.expect("read");
            buffer = back;
        }
        let allocations = ALLOCATIONS.get() - counted;
        assert!(
            allocations < 20,
            "{allocations} allocations for 2000 requests"
        );
        drop(device);
        export.unregister().await;
    });
}

fn concealed(spdk: &Spdk) {
    start(spdk, "hides");
    let exposed = expose_tcp(spdk, "hides");
    let writer = spdk.reactor(1).call(|| async {
        let device = Bdev::open("hides-backn1", Access::ReadWrite).expect("opens");
        let stop = Rc::new(AtomicU64::new(0));
        let host = spdk::host().expect("on a reactor");
        // Until the device says that it is gone, or the requests fail.
        for round in 0..u64::MAX {
            let at = host.random() % 1024 * 4096;
            let (_, result) = device.write(at, device.allocate(4096)).await;
            stop.store(round, Ordering::Relaxed);
            if result.is_err() {
                break;
            }
        }
        stop.load(Ordering::Relaxed)
    });
    std::thread::sleep(Duration::from_millis(200));
    wait(exposed.conceal()).expect("concealed under load");
    wait(spdk.bdevs().detach_nvme("hides-back")).expect("detached");
    let written = wait(writer).expect("the reactor runs");
    assert!(written > 10, "{written} writes");
    end(spdk, "hides");
}

fn left_behind(spdk: &Spdk) {
    on(spdk.reactor(0), || async {
        let made = export(options("left")).await;
        made.1.delay.set(Duration::from_secs(3600));
        EXPORTED.with_borrow_mut(|all| all.push(made));
    });
    // From both reactors: one task waits where the disk is, the other one across.
    for reactor in 0..2 {
        on(spdk.reactor(reactor), || async {
            let device = Bdev::open("left", Access::ReadWrite).expect("opens");
            spdk::spawn(async move {
                let _ = device.write(0, device.allocate(4096)).await;
            });
            spdk::sleep(Duration::from_millis(20)).await;
        });
    }
}
