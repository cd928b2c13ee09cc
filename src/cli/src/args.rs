//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::path::Remote;

const AFTER: &str = "\
Paths on a volume are VOLUME:/path, or just /path if only one volume is mounted.

Exit status:
  0  done
  1  failed (also: done in part, with a message for each part that was not)
  2  wrong usage, or an invalid argument
  3  no such file, attribute, volume or device
  4  there is one already
  5  not permitted, or read-only
  6  no space
  7  the daemon cannot be reached, or is ending
  8  a check has found errors";

/// The client of an Ocelot node.
#[derive(Debug, Parser)]
#[command(name = "ocelot", version, after_help = AFTER)]
pub struct Cli {
    /// Where the daemon listens: unix:/path or http://host:port.
    #[arg(
        long,
        global = true,
        env = "OCELOT_SERVER",
        default_value = "unix:/run/ocelot/ocelotd.sock",
        value_name = "ADDRESS"
    )]
    pub server: String,
    /// Answer in JSON, one document per command.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress bars.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List directories.
    Ls(Ls),
    /// Show everything about files.
    Stat {
        #[arg(required = true)]
        paths: Vec<Remote>,
        /// Follow symbolic links.
        #[arg(short = 'L', long)]
        follow: bool,
    },
    /// Write files to standard output.
    Cat {
        #[arg(required = true)]
        paths: Vec<Remote>,
    },
    /// Copy local files to a volume; "-" is standard input.
    Put(Put),
    /// Copy files of a volume to local ones; "-" is standard output.
    Get(Get),
    /// Make directories.
    Mkdir {
        #[arg(required = true)]
        paths: Vec<Remote>,
        /// Make the directories above as well; no error if there is one.
        #[arg(short, long)]
        parents: bool,
        /// Permissions, octal.
        #[arg(short, long, value_parser = parse_mode, default_value = "755")]
        mode: u32,
    },
    /// Remove files.
    Rm {
        #[arg(required = true)]
        paths: Vec<Remote>,
        /// Remove directories and what is in them.
        #[arg(short, long, visible_short_alias = 'R')]
        recursive: bool,
        /// No error if there is none.
        #[arg(short, long)]
        force: bool,
    },
    /// Remove empty directories.
    Rmdir {
        #[arg(required = true)]
        paths: Vec<Remote>,
    },
    /// Rename or move.
    Mv {
        from: Remote,
        /// The new name, or the directory to move to.
        to: Remote,
        /// Fail if the target exists.
        #[arg(short, long)]
        no_clobber: bool,
        /// Let the two change places.
        #[arg(long, conflicts_with = "no_clobber")]
        exchange: bool,
    },
    /// Make a link.
    Ln {
        /// Make a symbolic link; TARGET is then taken as it is.
        #[arg(short, long)]
        symbolic: bool,
        target: OsString,
        link: Remote,
    },
    /// Show where symbolic links point.
    Readlink {
        #[arg(required = true)]
        paths: Vec<Remote>,
    },
    /// Set times to now, or to --time; make empty files where there are none.
    Touch {
        #[arg(required = true)]
        paths: Vec<Remote>,
        /// Make no files.
        #[arg(short = 'c', long)]
        no_create: bool,
        /// Seconds since 1970, with a fraction if need be.
        #[arg(short, long, value_parser = parse_time, allow_negative_numbers = true)]
        time: Option<Time>,
    },
    /// Change permissions.
    Chmod {
        /// Octal.
        #[arg(value_parser = parse_mode)]
        mode: u32,
        #[arg(required = true)]
        paths: Vec<Remote>,
    },
    /// Change owner and group.
    Chown {
        /// UID, UID:GID or :GID; numbers.
        #[arg(value_parser = parse_owner)]
        owner: Owner,
        #[arg(required = true)]
        paths: Vec<Remote>,
        /// Change symbolic links themselves.
        #[arg(short = 'P', long)]
        no_follow: bool,
    },
    /// Set the size of files.
    Truncate {
        /// Bytes; K, M, G, T for powers of 1024.
        #[arg(short, long, value_parser = parse_size)]
        size: u64,
        #[arg(required = true)]
        paths: Vec<Remote>,
    },
    /// Allocate, punch or zero a range of a file; by default allocate, and grow the file if need be.
    Fallocate {
        /// The file's size stays.
        #[arg(short, long)]
        keep_size: bool,
        /// Give the range's space back; it reads as zero.
        #[arg(short, long, conflicts_with = "zero_range")]
        punch_hole: bool,
        /// Allocate the range, and make it read as zero.
        #[arg(short, long)]
        zero_range: bool,
        /// Bytes; K, M, G, T for powers of 1024.
        #[arg(short, long, value_parser = parse_size, default_value = "0")]
        offset: u64,
        /// Bytes; K, M, G, T for powers of 1024.
        #[arg(short, long, value_parser = parse_size)]
        length: u64,
        path: Remote,
    },
    /// Make a file that shares another's space until either is written.
    Reflink {
        from: Remote,
        /// The new name, or the directory to make it in.
        to: Remote,
        /// Keep owner, group, set-id bits, modification time, ACLs and security attributes.
        #[arg(short, long)]
        preserve: bool,
    },
    /// Show where a file lies on its device.
    Extents {
        path: Remote,
        #[command(flatten)]
        link: Link,
    },
    /// Find the next data or hole of a file; exit status 3 if there is none.
    #[command(group(clap::ArgGroup::new("what").required(true)))]
    Seek {
        #[arg(long, group = "what")]
        data: bool,
        /// The end of the file is one.
        #[arg(long, group = "what")]
        hole: bool,
        /// Bytes; K, M, G, T for powers of 1024.
        #[arg(short, long, value_parser = parse_size, default_value = "0")]
        offset: u64,
        path: Remote,
    },
    /// Measure reads and writes of a file.
    Bench(Bench),
    /// Show the space on volumes.
    Df { volumes: Vec<String> },
    /// Show what writing and caching took on volumes since they were mounted.
    Counters { volumes: Vec<String> },
    /// Make everything durable that was changed on volumes.
    Sync { volumes: Vec<String> },
    /// Check a volume while it is in use: what fsck.ocfs2 looks at, and more; nothing is written.
    ///
    /// It is checked as it was at one moment. Each finding is a line: severity, code, inode, path,
    /// block, what is wrong. Exit status 0 if there is no error (notes are none), 8 if there is one.
    #[command(verbatim_doc_comment)]
    Check {
        /// Not needed if there is one volume only.
        #[arg(default_value = "")]
        volume: String,
    },
    /// Extended attributes.
    #[command(subcommand)]
    Xattr(Xattr),
    /// List volumes.
    Volumes,
    /// List devices.
    Devices,
    /// Attach a device.
    #[command(subcommand)]
    Attach(Attach),
    /// Detach a device.
    Detach { name: String },
    /// Mount the volume on a device.
    Mount {
        device: String,
        /// What to call it, if not by its label.
        name: Option<String>,
        #[arg(long)]
        read_only: bool,
        /// Once an error has stopped writing: turn read-only, or end the whole daemon.
        #[arg(long, value_enum, default_value_t, value_name = "POLICY")]
        errors: Errors,
        #[command(flatten)]
        tuning: Tuning,
    },
    /// Offer a file as a block device, until `unexport` or the daemon's end.
    Export(Export),
    /// Show the files that are offered as block devices, with what was done to them.
    Exports,
    /// Take block devices of files away.
    Unexport {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Unmount a volume.
    Unmount {
        volume: String,
        /// Close open handles, and take exports away.
        #[arg(short, long)]
        force: bool,
    },
    /// Ask for the daemon's health, or a volume's; exit status 0 if it serves.
    Health { volume: Option<String> },
    /// Show the client's version and the daemon's.
    Version,
    /// Write a completion script for a shell.
    Completions { shell: clap_complete::Shell },
}

/// What else a mount can say; the node's defaults where nothing is said.
#[derive(Debug, Default, Args)]
pub struct Tuning {
    /// Direct writes of several nodes to one file: one node at a time, or all together.
    #[arg(long, value_enum, default_value_t)]
    pub coherency: Coherency,
    /// Memory for file data.
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub page_cache: Option<u64>,
    /// What a write to shared clusters copies at least; 0: the clusters it touches.
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub copy_on_write: Option<u64>,
    /// A change waits at most so long for its commit.
    #[arg(long, value_name = "MS")]
    pub commit_interval: Option<u32>,
}

/// How direct writes of several nodes to one file are kept coherent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Coherency {
    #[default]
    Full,
    Buffered,
}

/// What a mounted volume's errors do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Errors {
    #[default]
    RemountRo,
    Panic,
}

#[derive(Debug, Args)]
pub struct Ls {
    pub paths: Vec<Remote>,
    /// One line per entry, with attributes.
    #[arg(short, long)]
    pub long: bool,
    /// Names that start with a dot too.
    #[arg(short, long)]
    pub all: bool,
    /// Directories below too.
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Directories themselves, not what is in them.
    #[arg(short, long)]
    pub directory: bool,
    /// Inode numbers too.
    #[arg(short, long)]
    pub inode: bool,
}

/// How files of the volume are opened.
#[derive(Debug, Clone, Copy, Args)]
pub struct Mode {
    /// Past the node's cache.
    #[arg(long)]
    pub direct: bool,
    /// Through the node's cache.
    #[arg(long, conflicts_with = "direct")]
    pub buffered: bool,
}

#[derive(Debug, Args)]
pub struct Put {
    /// What to copy, then where to: a file, or a directory that exists (or ends with '/').
    #[arg(required = true, num_args = 2..)]
    pub paths: Vec<OsString>,
    /// Directories with everything in them; keeps times, owners, links and extended attributes.
    #[arg(short, long, visible_short_alias = 'R')]
    pub recursive: bool,
    /// Keep times, owner and extended attributes of single files too.
    #[arg(short, long)]
    pub preserve: bool,
    #[command(flatten)]
    pub mode: Mode,
    /// Add to the end of the file.
    #[arg(long, conflicts_with_all = ["recursive", "no_clobber"])]
    pub append: bool,
    /// Each file is durable before it counts as copied.
    #[arg(long)]
    pub fsync: bool,
    /// Fail if the file exists.
    #[arg(short, long)]
    pub no_clobber: bool,
    /// Tell how the node wrote the data, attempt by attempt.
    #[arg(long)]
    pub explain: bool,
    /// Files on their way at once.
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
}

#[derive(Debug, Args)]
pub struct Get {
    /// What to copy, then where to: a file, a directory that exists (or ends with '/'), or "-".
    #[arg(required = true, num_args = 2..)]
    pub paths: Vec<OsString>,
    /// Directories with everything in them; keeps times, owners, links and extended attributes.
    #[arg(short, long, visible_short_alias = 'R')]
    pub recursive: bool,
    /// Keep times, owner and extended attributes of single files too.
    #[arg(short, long)]
    pub preserve: bool,
    #[command(flatten)]
    pub mode: Mode,
    /// Files on their way at once.
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
}

/// Requests of one size to a file, so many in flight, for some time; through the `Io` stream.
#[derive(Debug, Clone, Args)]
pub struct Bench {
    /// The file. One that is not there is made, filled, and removed at the end.
    pub path: Remote,
    /// What the requests do.
    #[arg(short, long, value_enum, default_value_t = Work::Read)]
    pub work: Work,
    /// Of a hundred mixed requests, how many are reads.
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_percent: u8,
    /// In order, rather than at random places. Each job goes through its part of the file, again
    /// and again.
    #[arg(long)]
    pub sequential: bool,
    /// Bytes of a request; K, M for powers of 1024.
    #[arg(short, long, value_parser = parse_size, default_value = "4K")]
    pub block_size: u64,
    /// Requests that each job has in flight.
    #[arg(short, long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub depth: u16,
    /// Jobs: each has a connection and a part of the file.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Bytes of the file that are used; K, M, G, T for powers of 1024.
    #[arg(short, long, value_parser = parse_size, default_value = "64M")]
    pub size: u64,
    /// Seconds.
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub time: u32,
    #[command(flatten)]
    pub mode: Mode,
    /// Write marked blocks, look at every block that is read, and at all of them at the end.
    #[arg(long)]
    pub verify: bool,
    /// Work on a file that is there; writing (also to verify) destroys what it holds.
    #[arg(long)]
    pub overwrite: bool,
    /// Leave a file that was made for this.
    #[arg(long)]
    pub keep: bool,
    /// Where the random places begin; the same number gives the same places.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    Read,
    Write,
    Mixed,
}

#[derive(Debug, Subcommand)]
pub enum Xattr {
    /// List the names of a file's extended attributes.
    Ls {
        path: Remote,
        #[command(flatten)]
        link: Link,
    },
    /// Write a value to standard output.
    Get {
        path: Remote,
        name: OsString,
        #[command(flatten)]
        link: Link,
    },
    /// Set a value; without one, standard input is the value.
    Set {
        path: Remote,
        name: OsString,
        value: Option<OsString>,
        /// Fail if there is one.
        #[arg(long)]
        create: bool,
        /// Fail if there is none.
        #[arg(long, conflicts_with = "create")]
        replace: bool,
        #[command(flatten)]
        link: Link,
    },
    /// Remove one.
    Rm {
        path: Remote,
        name: OsString,
        #[command(flatten)]
        link: Link,
    },
}

#[derive(Debug, Clone, Copy, Args)]
pub struct Link {
    /// Of the symbolic link itself.
    #[arg(short = 'P', long)]
    pub no_follow: bool,
}

#[derive(Debug, Args)]
pub struct Export {
    pub path: Remote,
    /// To whom: the daemon's own SPDK, or NVMe hosts by TCP or by a vfio-user socket.
    #[arg(long = "as", value_enum)]
    pub kind: ExportKind,
    /// What to call it, if not by the file's name.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub name: String,
    /// The NVMe qualified name; by default nqn.2026-01.io.ocelot:NAME.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub nqn: String,
    /// nvme-tcp: IP:PORT, by default 127.0.0.1:4420. vfio-user: the socket's folder, by default
    /// /run/ocelot/vfio-user/NAME.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub address: String,
    #[arg(long)]
    pub read_only: bool,
    /// 512 or 4096 bytes; by default 4096 if the file's size allows it.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub block_size: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportKind {
    Bdev,
    NvmeTcp,
    VfioUser,
}

#[derive(Debug, Subcommand)]
pub enum Attach {
    /// A file of the daemon's host.
    Image {
        name: String,
        path: PathBuf,
        /// Logical block size in bytes.
        #[arg(long, default_value_t = 512)]
        block_size: u32,
        #[arg(long, value_enum, default_value_t = Engine::Auto)]
        engine: Engine,
        #[arg(long)]
        read_only: bool,
    },
    /// Memory of the daemon, gone when it is detached.
    Memory {
        name: String,
        /// Bytes; K, M, G, T for powers of 1024.
        #[arg(value_parser = parse_size)]
        size: u64,
        #[arg(long, default_value_t = 512)]
        block_size: u32,
    },
    /// An NVMe namespace.
    Nvme {
        name: String,
        /// A PCIe function, 0000:01:00.0.
        #[arg(long, group = "where", required_unless_present_any = ["tcp", "vfio_user"])]
        pcie: Option<String>,
        /// HOST:PORT of an NVMe/TCP target.
        #[arg(long, group = "where", requires = "nqn")]
        tcp: Option<String>,
        /// Directory of a vfio-user socket.
        #[arg(long, group = "where")]
        vfio_user: Option<PathBuf>,
        /// The subsystem's NQN.
        #[arg(long)]
        nqn: Option<String>,
        #[arg(long, default_value_t = 1)]
        namespace: u32,
        #[arg(long)]
        host_nqn: Option<String>,
    },
    /// A bdev of the daemon's SPDK configuration.
    Bdev { name: String, bdev: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    Auto,
    Aio,
    Uring,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("not octal permissions like 644".into()),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("unit {unit:?} is not K, M, G or T")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number of bytes".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())
}

fn parse_owner(text: &str) -> Result<Owner, String> {
    let number = |part: &str| match part {
        "" => Ok(None),
        digits => digits
            .parse()
            .map(Some)
            .map_err(|_| format!("{digits:?} is not a number")),
    };
    let (uid, gid) = text.split_once(':').unwrap_or((text, ""));
    let owner = Owner {
        uid: number(uid)?,
        gid: number(gid)?,
    };
    if owner
        == (Owner {
            uid: None,
            gid: None,
        })
    {
        return Err("neither owner nor group".into());
    }
    Ok(owner)
}

fn parse_time(text: &str) -> Result<Time, String> {
    let bad = || "not seconds since 1970".to_owned();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let nanoseconds: u32 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
    // On disk the fraction counts forward, also before 1970.
    match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => Ok(Time {
            seconds: seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        }),
        _ => Ok(Time {
            seconds,
            nanoseconds,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("4K"), Ok(4096));
        assert_eq!(parse_size("3MiB"), Ok(3 << 20));
        assert_eq!(parse_size("1G"), Ok(1 << 30));
        assert!(parse_size("1X").is_err());
        assert!(parse_size("").is_err());
        assert!(parse_size("99999999999T").is_err());
    }

    #[test]
    fn owners() {
        assert_eq!(
            parse_owner("5"),
            Ok(Owner {
                uid: Some(5),
                gid: None
            })
        );
        assert_eq!(
            parse_owner("5:6"),
            Ok(Owner {
                uid: Some(5),
                gid: Some(6)
            })
        );
        assert_eq!(
            parse_owner(":6"),
            Ok(Owner {
                uid: None,
                gid: Some(6)
            })
        );
        assert!(parse_owner(":").is_err());
        assert!(parse_owner("root").is_err());
    }

    #[test]
    fn times() {
        assert_eq!(
            parse_time("10.5"),
            Ok(Time {
                seconds: 10,
                nanoseconds: 500_000_000
            })
        );
        assert_eq!(
            parse_time("-1"),
            Ok(Time {
                seconds: -1,
                nanoseconds: 0
            })
        );
        assert_eq!(
            parse_time("-0.25"),
            Ok(Time {
                seconds: -1,
                nanoseconds: 750_000_000
            })
        );
        assert!(parse_time("now").is_err());
        assert!(parse_time("1.0000000001").is_err());
    }

    #[test]
    fn modes() {
        assert_eq!(parse_mode("4755"), Ok(0o4755));
        assert!(parse_mode("888").is_err());
        assert!(parse_mode("17777").is_err());
    }

    #[test]
    fn commands_parse() {
        for line in [
            "ocelot ls",
            "ocelot ls -laR data:/x --json",
            "ocelot put -r a b data:/",
            "ocelot --server http://127.0.0.1:1 put --append - /log",
            "ocelot attach nvme n0 --tcp 127.0.0.1:4420 --nqn nqn.x",
            "ocelot attach image d0 /x.img --engine uring",
            "ocelot xattr set /x user.a b --create",
            "ocelot mv --exchange /a /b",
            "ocelot chown 0:0 /x",
            "ocelot put --explain a /x",
            "ocelot bench data:/x --work mixed --sequential -b 64K -d 8 -j 2 --direct --verify",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "ocelot put onlyone",
            "ocelot put --direct --buffered a b",
            "ocelot attach nvme n0",
            "ocelot attach nvme n0 --tcp 127.0.0.1:4420",
            "ocelot truncate /x",
            "ocelot ls not-absolute",
            "ocelot bench /x --depth 0",
            "ocelot bench /x --work erase",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
