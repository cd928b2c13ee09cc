//! The kernel's file systems, on a loop device over a file of memory: fio with io_uring and O_DIRECT.

use std::path::Path;
use std::process::Command;

use crate::{DEVICE_MIB, FILE_BYTES, Load, Outcome, Plan};

fn run(command: &mut Command) -> Outcome<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if !done.status.success() {
        let errors = String::from_utf8_lossy(&done.stderr);
        return Err(format!("{name}: {} {}", done.status, errors.trim()).into());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Unmounted with this.
struct Mounted<'p>(&'p Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

pub fn file_system(plan: &mut Plan, kind: &'static str) -> Outcome<()> {
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let (image, at) = (memory.path().join("image"), memory.path().join("mnt"));
    // XFS makes nothing smaller than 300 MiB.
    std::fs::File::create(&image)?.set_len((DEVICE_MIB * 2) << 20)?;
    std::fs::create_dir(&at)?;
    let quiet = if kind == "xfs" { "-q" } else { "-qF" };
    run(Command::new(format!("/usr/sbin/mkfs.{kind}"))
        .arg(quiet)
        .arg(&image))?;
    run(Command::new("mount")
        .args(["-o", "loop", "-t", kind])
        .args([&image, &at]))?;
    let mounted = Mounted(&at);
    let file = mounted.0.join("file");
    // Allocated and written, as the file on our volume is.
    run(Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "conv=fsync"])
        .arg(format!("of={}", file.display()))
        .arg(format!("count={}", FILE_BYTES >> 20)))?;
    let subject = if kind == "xfs" {
        "xfs on loop, io_uring"
    } else {
        "ext4 on loop, io_uring"
    };
    for load in Load::all() {
        let text = run(Command::new("fio")
            .args([
                "--name=j",
                "--ioengine=io_uring",
                "--direct=1",
                "--time_based",
            ])
            .args(["--output-format=json", "--thread=1"])
            .arg(format!("--filename={}", file.display()))
            .arg(format!(
                "--rw={}",
                if load.read { "randread" } else { "randwrite" }
            ))
            .arg(format!("--bs={}", load.block))
            .arg(format!("--iodepth={}", load.depth))
            .arg(format!("--size={FILE_BYTES}"))
            .arg(format!("--runtime={}", plan.seconds)))?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        let side = if load.read { "read" } else { "write" };
        let iops = answer["jobs"][0][side]["iops"].as_f64();
        plan.add(
            subject,
            "bdevperf raw",
            load,
            iops.ok_or("fio tells no IOPS")?,
        );
    }
    Ok(())
}
