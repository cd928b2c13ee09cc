//! SPDK's own programs: bdevperf on the raw device, and as the host of a target.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{DEVICE_MIB, Load, Outcome, Plan};

pub fn spdk(program: &str) -> PathBuf {
    let prefix = std::env::var("SPDK_PREFIX").unwrap_or_else(|_| "/opt/spdk".into());
    Path::new(&prefix).join("bin").join(program)
}

const MALLOC: &str = r#"{"method":"bdev_malloc_create","params":{"name":"disk","num_blocks":BLOCKS,"block_size":4096}}"#;

fn malloc() -> String {
    MALLOC.replace("BLOCKS", &(DEVICE_MIB * 256).to_string())
}

fn subsystem(name: &str, calls: &[String]) -> String {
    format!(r#"{{"subsystem":"{name}","config":[{}]}}"#, calls.join(","))
}

fn configuration(subsystems: &[String]) -> String {
    format!(r#"{{"subsystems":[{}]}}"#, subsystems.join(","))
}

/// IOPS of one bdevperf run on the second processor.
pub fn bdevperf(folder: &Path, config: &str, load: Load, seconds: u64) -> Outcome<f64> {
    let file = folder.join("bdevperf.json");
    std::fs::write(&file, config)?;
    let done = Command::new(spdk("bdevperf"))
        .args(["-g", "--env-context=--in-memory", "-m", "0x2", "-s", "256"])
        .arg("--disable-cpumask-locks")
        .arg("-r")
        .arg(folder.join("bdevperf.sock"))
        .arg("-c")
        .arg(&file)
        .args(["-q", &load.depth.to_string()])
        .args(["-o", &load.block.to_string()])
        .args(["-w", if load.read { "randread" } else { "randwrite" }])
        .args(["-t", &seconds.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&done.stdout);
    // ` Total : IOPS MiB/s …`
    let total = text
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("Total")?.split_once(':'))
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok());
    match total {
        Some(iops) if done.status.success() && iops > 0.0 => Ok(iops),
        _ => {
            let errors = String::from_utf8_lossy(&done.stderr);
            let tail: Vec<&str> = errors.lines().rev().take(3).collect();
            Err(format!("bdevperf: {} {}", done.status, tail.join(" | ")).into())
        }
    }
}

pub fn raw(plan: &mut Plan) -> Outcome<()> {
    let config = configuration(&[subsystem("bdev", &[malloc()])]);
    for load in Load::all() {
        let iops = bdevperf(&plan.folder, &config, load, plan.seconds)?;
        plan.add("bdevperf raw", "bdevperf raw", load, iops);
    }
    Ok(())
}

/// How a host finds a namespace.
pub fn host(transport: &str, address: &str, port: u16, nqn: &str) -> String {
    let attach = format!(
        r#"{{"method":"bdev_nvme_attach_controller","params":{{"name":"far","trtype":"{transport}","adrfam":"IPv4","traddr":"{address}","trsvcid":"{port}","subnqn":"{nqn}"}}}}"#
    );
    configuration(&[subsystem("bdev", &[attach])])
}

pub fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A child that ends with this.
pub struct Ends(pub Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const NQN: &str = "nqn.2026-01.io.ocelot:raw";

/// SPDK's target with a raw device, on the first processor.
pub fn target(plan: &mut Plan) -> Outcome<()> {
    let (port, sockets) = (free_port()?, tempfile::tempdir()?);
    let folder = sockets.path().to_string_lossy().into_owned();
    let call = |method: &str, params: &str| format!(r#"{{"method":"{method}","params":{params}}}"#);
    let listen = |address: &str| {
        call(
            "nvmf_subsystem_add_listener",
            &format!(r#"{{"nqn":"{NQN}","listen_address":{{{address}}}}}"#),
        )
    };
    let nvmf = [
        call("nvmf_create_transport", r#"{"trtype":"TCP"}"#),
        call("nvmf_create_transport", r#"{"trtype":"VFIOUSER"}"#),
        call(
            "nvmf_create_subsystem",
            &format!(r#"{{"nqn":"{NQN}","allow_any_host":true,"serial_number":"RAW"}}"#),
        ),
        call(
            "nvmf_subsystem_add_ns",
            &format!(r#"{{"nqn":"{NQN}","namespace":{{"bdev_name":"disk","nsid":1}}}}"#),
        ),
        listen(&format!(
            r#""trtype":"TCP","adrfam":"IPv4","traddr":"127.0.0.1","trsvcid":"{port}""#
        )),
        listen(&format!(r#""trtype":"VFIOUSER","traddr":"{folder}""#)),
    ];
    let config = configuration(&[subsystem("bdev", &[malloc()]), subsystem("nvmf", &nvmf)]);
    let file = plan.folder.join("target.json");
    std::fs::write(&file, config)?;
    let child = Command::new(spdk("nvmf_tgt"))
        .args(["-m", "0x1", "-s", "512", "--disable-cpumask-locks", "-r"])
        .arg(plan.folder.join("target.sock"))
        .arg("-c")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut child = Ends(child);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !sockets.path().join("cntrl").exists() {
        if let Some(status) = child.0.try_wait()? {
            return Err(format!("nvmf_tgt: {status}").into());
        }
        if Instant::now() > deadline {
            return Err("nvmf_tgt does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let ways = [
        ("raw over vfio-user", host("VFIOUSER", &folder, 0, NQN)),
        ("raw over TCP", host("TCP", "127.0.0.1", port, NQN)),
    ];
    for (subject, config) in ways {
        for load in Load::all() {
            let iops = bdevperf(&plan.folder, &config, load, plan.seconds)?;
            plan.add(subject, "bdevperf raw", load, iops);
        }
    }
    Ok(())
}
