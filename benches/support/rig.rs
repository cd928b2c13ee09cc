//! What is beside us: SPDK's `bdevperf`, and an NVMe target for vfio-user.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The file's size, and that of every bdev beside it: requests spread over as much memory.
pub const FILE_BYTES: u64 = 128 << 20;
pub const VOLUME_BYTES: u64 = 192 << 20;

const NQN: &str = "nqn.2026-01.io.ocelot:bench";
/// What each of the processes may take.
const MEMORY_MIB: u32 = 640;

type Failure = Box<dyn Error + Send + Sync>;

/// What a run gave.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub iops: f64,
    /// Requests in a second of the polling thread's own time on the processor.
    pub iops_per_cpu_second: f64,
    pub allocations_per_request: f64,
}

pub struct Rig {
    folder: tempfile::TempDir,
    prefix: String,
    huge: bool,
    target: Option<Child>,
}

impl Rig {
    /// Starts an NVMe target if it is wanted and there are huge pages for it.
    pub fn start(nvme: bool) -> Result<Rig, Failure> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spdk-config/hugepages");
        let huge = Command::new(script)
            .arg((3 * MEMORY_MIB).to_string())
            .output()
            .is_ok_and(|output| output.status.success());
        let prefix = std::env::var("SPDK_PREFIX").unwrap_or_else(|_| "/opt/spdk".to_owned());
        let mut rig = Rig {
            folder: tempfile::tempdir()?,
            prefix,
            huge,
            target: None,
        };
        if nvme && huge {
            rig.start_target()?;
        } else if nvme {
            eprintln!("no huge pages (spdk-config/hugepages as root gives them): no NVMe");
        }
        Ok(rig)
    }

    pub fn has_nvme(&self) -> bool {
        self.target.is_some()
    }

    fn socket_folder(&self, whose: &str) -> PathBuf {
        self.folder.path().join(whose)
    }

    /// `ours` has two namespaces, raw and volume; `theirs` one.
    fn start_target(&mut self) -> Result<(), Failure> {
        let mut bdevs = Vec::new();
        let mut calls =
            vec![json!({"method": "nvmf_create_transport", "params": {"trtype": "VFIOUSER"}})];
        for (whose, sizes) in [
            ("ours", &[FILE_BYTES, VOLUME_BYTES][..]),
            ("theirs", &[FILE_BYTES]),
        ] {
            std::fs::create_dir(self.socket_folder(whose))?;
            let nqn = format!("{NQN}-{whose}");
            calls.push(json!({"method": "nvmf_create_subsystem", "params": {
                "nqn": nqn, "allow_any_host": true, "serial_number": whose}}));
            for (index, size) in sizes.iter().enumerate() {
                let name = format!("{whose}{index}");
                bdevs.push(malloc(&name, *size));
                calls.push(json!({"method": "nvmf_subsystem_add_ns", "params": {
                    "nqn": nqn, "namespace": {"bdev_name": name, "nsid": index + 1}}}));
            }
            calls.push(json!({"method": "nvmf_subsystem_add_listener", "params": {
                "nqn": nqn,
                "listen_address": {"trtype": "VFIOUSER", "traddr": self.socket_folder(whose)}}}));
        }
        let config = json!({"subsystems": [
            {"subsystem": "bdev", "config": bdevs},
            {"subsystem": "nvmf", "config": calls}]});
        let mut command = self.command("nvmf_tgt", "target", &config)?;
        // Not where we and bdevperf are, if there is another processor.
        let second = std::thread::available_parallelism()?.get() > 1;
        command.args(["-m", if second { "0x2" } else { "0x1" }]);
        let log = std::fs::File::create(self.folder.path().join("target.log"))?;
        let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let child = self.target.insert(child);
        let until = Instant::now() + Duration::from_secs(60);
        let socket = self.folder.path().join("theirs/cntrl");
        while !socket.exists() {
            if child.try_wait()?.is_some() || Instant::now() > until {
                let log = std::fs::read_to_string(self.folder.path().join("target.log"))?;
                return Err(format!("nvmf_tgt does not listen: {log}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Our bdevs: `raw` and `vol` of malloc, `nvmen1` and `nvmen2` of the target.
    pub fn our_config(&self) -> String {
        let mut calls = vec![malloc("raw", FILE_BYTES), malloc("vol", VOLUME_BYTES)];
        if self.has_nvme() {
            calls.push(self.attach("ours"));
        }
        json!({"subsystems": [{"subsystem": "bdev", "config": calls}]}).to_string()
    }

    fn attach(&self, whose: &str) -> Value {
        json!({"method": "bdev_nvme_attach_controller", "params": {
            "name": "nvme", "trtype": "VFIOUSER", "traddr": self.socket_folder(whose),
            "subnqn": format!("{NQN}-{whose}")}})
    }

    /// One of SPDK's programs; it dies with us.
    fn command(&self, program: &str, name: &str, config: &Value) -> Result<Command, Failure> {
        let file = self.folder.path().join(format!("{name}.json"));
        std::fs::write(&file, config.to_string())?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "stdbuf", "-oL"])
            .arg(format!("{}/bin/{program}", self.prefix))
            .arg("--disable-cpumask-locks")
            .args(["-s", &MEMORY_MIB.to_string()])
            .arg("-r")
            .arg(self.folder.path().join(format!("{name}.sock")))
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null());
        if self.huge {
            command.args(["-g", "--env-context", "--in-memory"]);
        } else {
            command.arg("--no-huge");
        }
        Ok(command)
    }

    /// The same requests by `bdevperf`, alone, on processor 0.
    pub fn bdevperf(
        &self,
        malloc_bdev: bool,
        depth: u64,
        read: bool,
        time: Duration,
    ) -> Result<Figures, Failure> {
        let bdev = match malloc_bdev {
            true => malloc("disk", FILE_BYTES),
            false => self.attach("theirs"),
        };
        let config = json!({"subsystems": [{"subsystem": "bdev", "config": [bdev]}]});
        let mut child = self
            .command("bdevperf", "bdevperf", &config)?
            .args(["-m", "0x1", "-o", "4096", "-q", &depth.to_string()])
            .args(["-w", if read { "randread" } else { "randwrite" }])
            .args(["-t", &time.as_secs().to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stat = format!("/proc/{}/schedstat", child.id());
        let output = child.stdout.take().ok_or("no output")?;
        let (mut start, mut end, mut iops) = (None, None, None);
        for line in BufReader::new(output).lines() {
            let line = line?;
            if line.starts_with("Running I/O") {
                start = Some(cpu_time(&stat));
            } else if line.contains("Device Information") {
                end = Some(cpu_time(&stat));
            } else if let Some(total) = line.trim_start().strip_prefix("Total") {
                iops = total
                    .split_whitespace()
                    .nth(1)
                    .and_then(|word| word.parse::<f64>().ok());
            }
        }
        let status = child.wait()?;
        let (Some(start), Some(end), Some(iops)) = (start, end, iops) else {
            return Err(format!("bdevperf ended with {status} and without a result").into());
        };
        let cpu = (end - start).as_secs_f64();
        Ok(Figures {
            iops,
            iops_per_cpu_second: iops * time.as_secs_f64() / cpu,
            allocations_per_request: f64::NAN,
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(target) = &mut self.target {
            let _ = target.kill();
            let _ = target.wait();
        }
    }
}

fn malloc(name: &str, bytes: u64) -> Value {
    json!({"method": "bdev_malloc_create", "params": {
        "name": name, "num_blocks": bytes / 4096, "block_size": 4096}})
}

/// A thread's time on a processor so far, from its `schedstat`.
pub fn cpu_time(file: &str) -> Duration {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let first = text.split_whitespace().next();
    Duration::from_nanos(first.and_then(|word| word.parse().ok()).unwrap_or(0))
}

/// The bytes of a new volume of the usual size.
pub fn format() -> Result<Vec<u8>, Failure> {
    format_of(VOLUME_BYTES)
}

/// One malloc bdev, as SPDK's configuration.
pub fn malloc_config(name: &str, bytes: u64) -> String {
    json!({"subsystems": [{"subsystem": "bdev", "config": [malloc(name, bytes)]}]}).to_string()
}

/// The bytes of a new volume.
pub fn format_of(bytes: u64) -> Result<Vec<u8>, Failure> {
    let file = tempfile::NamedTempFile::new()?;
    file.as_file().set_len(bytes)?;
    let options = [
        "-q", "-x", "-F", "-M", "local", "-N", "1", "-b", "4096", "-C", "4096", "-J", "size=16M",
    ];
    let done = Command::new("/usr/sbin/mkfs.ocfs2")
        .args(options)
        .arg("--fs-feature-level=max-features")
        .arg(file.path())
        .output()?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into());
    }
    Ok(std::fs::read(file.path())?)
}
