//! The configuration: one TOML file, and a few options of the command line that override it.
//!
//! Every field has a default, unknown fields are refused, and a message names the field and what is
//! wrong with it. `examples/ocelotd.toml` shows all of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use serde::Deserialize;

use crate::device::DeviceSource;
use crate::door::{self, MountOptions, OnError};
use crate::export::ExportSpec;
use crate::limits;
use crate::mount_options::Wishes;
use crate::node::{NodeOptions, check_label};

/// The daemon of an Ocelot node.
#[derive(Debug, Parser)]
#[command(name = "ocelotd", version)]
pub struct Args {
    /// The configuration file. Without one, the defaults hold: a Unix socket, TCP on loopback, no
    /// devices.
    #[arg(short, long, env = "OCELOT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Listen on this Unix socket; overrides `listen.unix`. Empty: on none.
    #[arg(long, env = "OCELOT_LISTEN_UNIX", value_name = "PATH")]
    pub listen_unix: Option<PathBuf>,
    /// Listen on this TCP address; overrides `listen.tcp`. Port 0 is any free one; see the log.
    #[arg(
        long,
        env = "OCELOT_LISTEN_TCP",
        value_name = "ADDRESS:PORT",
        value_delimiter = ','
    )]
    pub listen_tcp: Vec<SocketAddr>,
    /// Listen on no TCP address.
    #[arg(long, conflicts_with = "listen_tcp")]
    pub no_tcp: bool,
    /// What to log ("info", "debug", "fs=trace,info"); overrides `log.filter`.
    #[arg(long, env = "OCELOT_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Read the configuration, say what is wrong with it, and end.
    #[arg(long)]
    pub check_config: bool,
}

/// The configuration file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the node calls itself. Empty: the host's name.
    pub name: String,
    pub listen: Listen,
    pub log: Log,
    pub limits: Limits,
    pub spdk: Spdk,
    #[serde(rename = "device")]
    pub devices: Vec<ConfiguredDevice>,
    #[serde(rename = "volume")]
    pub volumes: Vec<ConfiguredVolume>,
    #[serde(rename = "export")]
    pub exports: Vec<ExportSpec>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Path of the Unix socket; empty for none.
    pub unix: PathBuf,
    /// The socket's permissions, octal.
    pub unix_mode: String,
    pub tcp: Vec<SocketAddr>,
    /// Anybody who reaches a TCP port may do anything. Addresses other than loopback need this
    /// said.
    pub insecure_remote: bool,
}

impl Default for Listen {
    fn default() -> Self {
        Listen {
            unix: "/run/ocelot/ocelotd.sock".into(),
            unix_mode: "0660".into(),
            tcp: vec![SocketAddr::from(([127, 0, 0, 1], 7463))],
            insecure_remote: false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub filter: String,
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            filter: "info".into(),
            format: LogFormat::Text,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Open handles of all clients together.
    pub handles: usize,
    /// A handle outside of any session ends when not used for so long.
    pub idle_handle_seconds: u64,
    /// At the end, how long requests may take to finish.
    pub grace_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handles: limits::HANDLES,
            idle_handle_seconds: limits::IDLE_HANDLE.as_secs(),
            grace_seconds: limits::GRACE.as_secs(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spdk {
    /// An SPDK JSON configuration (as in `spdk-config/`) whose bdevs become devices.
    pub config: Option<PathBuf>,
    /// CPUs that reactors are pinned to, one on each; volumes go round them. None: one reactor,
    /// wherever the system puts it.
    pub cores: Vec<u32>,
    /// Memory for DMA, in MiB.
    pub memory_mib: u32,
    /// NVMe over PCIe and vfio-user need huge pages; files, memory and TCP do without.
    pub huge_pages: HugePages,
    pub polling: Polling,
}

impl Default for Spdk {
    fn default() -> Self {
        Spdk {
            config: None,
            cores: Vec::new(),
            memory_mib: 512,
            huge_pages: HugePages::Auto,
            polling: Polling::Adaptive,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    /// If enough of them are free.
    Auto,
    /// Or the daemon does not start.
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Polling {
    /// Sleep when idle.
    Adaptive,
    /// Never sleep: the lowest latency, for a whole core.
    Busy,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ConfiguredDevice {
    pub name: String,
    #[serde(flatten)]
    pub source: DeviceSource,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfiguredVolume {
    pub device: String,
    /// Empty: the volume's label or UUID.
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub errors: ErrorPolicy,
    #[serde(default)]
    pub coherency: Coherency,
    /// Memory for file data, in MiB; none: every write goes through.
    pub page_cache_mib: Option<u32>,
    /// A write to shared clusters copies aligned pieces of so many KiB.
    pub copy_on_write_kib: Option<u32>,
    /// A change waits at most so long for its commit.
    pub commit_interval_ms: Option<u32>,
}

/// How direct writes of several nodes to one file are kept coherent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coherency {
    #[default]
    Full,
    Buffered,
}

impl ConfiguredVolume {
    /// The options that these fields are.
    pub fn options(&self) -> crate::failure::Result<MountOptions> {
        let wishes = Wishes {
            read_only: self.read_only,
            on_error: match self.errors {
                ErrorPolicy::RemountRo => OnError::RemountReadOnly,
                ErrorPolicy::Panic => OnError::Panic,
            },
            coherency: match self.coherency {
                Coherency::Full => door::Coherency::Full,
                Coherency::Buffered => door::Coherency::Buffered,
            },
            page_cache_bytes: self.page_cache_mib.map(|mib| u64::from(mib) << 20),
            copy_on_write_bytes: self.copy_on_write_kib.map(|kib| kib.saturating_mul(1024)),
            commit_interval_ms: self.commit_interval_ms,
        };
        wishes.into_options()
    }
}

/// What becomes of the node once a volume's metadata or journal cannot be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorPolicy {
    /// The volume turns read-only; the others go on.
    #[default]
    RemountRo,
    /// The daemon ends at once.
    Panic,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}", path.display())]
    Syntax {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("{field}: {problem}")]
    Field { field: String, problem: String },
}

impl Config {
    /// The file's configuration, overridden by the arguments, checked.
    pub fn load(args: &Args) -> Result<Config, ConfigError> {
        let mut config = match &args.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if let Some(unix) = &args.listen_unix {
            config.listen.unix = unix.clone();
        }
        if args.no_tcp {
            config.listen.tcp.clear();
        } else if !args.listen_tcp.is_empty() {
            config.listen.tcp = args.listen_tcp.clone();
        }
        if let Some(filter) = &args.log {
            config.log.filter = filter.clone();
        }
        if config.name.is_empty() {
            config.name = host_name();
        }
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: source.into(),
        })
    }

    /// Everything that can be checked without touching a device.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |field: &str, problem: String| {
            Err(ConfigError::Field {
                field: field.to_owned(),
                problem,
            })
        };
        if self.listen.unix.as_os_str().is_empty() && self.listen.tcp.is_empty() {
            return bad(
                "listen",
                "neither `unix` nor `tcp` is given: nobody could call".into(),
            );
        }
        self.unix_mode()?;
        for address in &self.listen.tcp {
            if !is_loopback(address.ip()) && !self.listen.insecure_remote {
                return bad(
                    "listen.tcp",
                    format!(
                        "{address} is not loopback, and whoever reaches it may do anything; set \
                         listen.insecure_remote if that is meant"
                    ),
                );
            }
        }
        if let Err(error) = self.log.filter.parse::<tracing_subscriber::EnvFilter>() {
            return bad("log.filter", format!("{:?}: {error}", self.log.filter));
        }
        if self.limits.handles == 0 {
            return bad("limits.handles", "0 would let nobody open a file".into());
        }
        if self.limits.idle_handle_seconds == 0 {
            return bad("limits.idle_handle_seconds", "must be at least 1".into());
        }
        let distinct: BTreeSet<_> = self.spdk.cores.iter().collect();
        if distinct.len() < self.spdk.cores.len() {
            return bad("spdk.cores", "a CPU is there twice".into());
        }
        if self.spdk.memory_mib < 64 {
            return bad(
                "spdk.memory_mib",
                format!("{} is below 64", self.spdk.memory_mib),
            );
        }
        let mut names = BTreeSet::new();
        for (index, device) in self.devices.iter().enumerate() {
            let prefix = format!("device[{index}]");
            check_label(&format!("{prefix}.name"), &device.name).or_else(config_error)?;
            device.source.check(&prefix).or_else(config_error)?;
            if !names.insert(&device.name) {
                return bad(
                    &format!("{prefix}.name"),
                    format!("{:?} is there twice", device.name),
                );
            }
        }
        let mut used = BTreeSet::new();
        let mut volume_names = BTreeSet::new();
        for (index, volume) in self.volumes.iter().enumerate() {
            let prefix = format!("volume[{index}]");
            if volume.device.is_empty() {
                return bad(&format!("{prefix}.device"), "must be given".into());
            }
            if let Err(failure) = volume.options() {
                let detail = failure.into_detail();
                return bad(&format!("{prefix}.{}", detail.field), detail.message);
            }
            if !used.insert(&volume.device) {
                let problem = format!("{:?} has a volume already", volume.device);
                return bad(&format!("{prefix}.device"), problem);
            }
            // A device may also come from spdk.config; without that, it has to be one of ours.
            if self.spdk.config.is_none() && !names.contains(&volume.device) {
                let problem = format!("there is no [[device]] {:?}", volume.device);
                return bad(&format!("{prefix}.device"), problem);
            }
            if !volume.name.is_empty() {
                check_label(&format!("{prefix}.name"), &volume.name).or_else(config_error)?;
                if !volume_names.insert(&volume.name) {
                    let problem = format!("{:?} is there twice", volume.name);
                    return bad(&format!("{prefix}.name"), problem);
                }
            }
        }
        let mut export_names = BTreeSet::new();
        for (index, export) in self.exports.iter().enumerate() {
            let prefix = format!("export[{index}]");
            export.check(&prefix).or_else(config_error)?;
            let mut complete = export.clone();
            if complete.complete().is_err() {
                let problem = "must be given: the file's own name cannot be one".into();
                return bad(&format!("{prefix}.name"), problem);
            }
            if export.is_remote() && !self.listen.insecure_remote {
                let problem = format!(
                    "{} is not loopback, and whoever reaches it may do anything; set \
                     listen.insecure_remote if that is meant",
                    export.address
                );
                return bad(&format!("{prefix}.address"), problem);
            }
            if !export_names.insert(complete.name.clone()) {
                let problem = format!("{:?} is there twice", complete.name);
                return bad(&format!("{prefix}.name"), problem);
            }
            if self.volumes.is_empty() {
                return bad(&format!("{prefix}.volume"), "there is no [[volume]]".into());
            }
            if export.volume.is_empty() && self.volumes.len() > 1 {
                let problem = "several volumes are mounted; say which one is meant".into();
                return bad(&format!("{prefix}.volume"), problem);
            }
        }
        Ok(())
    }

    pub fn unix_mode(&self) -> Result<u32, ConfigError> {
        match u32::from_str_radix(&self.listen.unix_mode, 8) {
            Ok(mode) if mode <= 0o777 => Ok(mode),
            _ => Err(ConfigError::Field {
                field: "listen.unix_mode".into(),
                problem: format!(
                    "{:?} is not an octal mode like \"0660\"",
                    self.listen.unix_mode
                ),
            }),
        }
    }

    pub fn node_options(&self) -> NodeOptions {
        NodeOptions {
            name: self.name.clone(),
            max_handles: self.limits.handles,
            idle_handle: Duration::from_secs(self.limits.idle_handle_seconds),
            insecure_remote: self.listen.insecure_remote,
        }
    }

    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.limits.grace_seconds)
    }
}

fn config_error(failure: crate::Failure) -> Result<(), ConfigError> {
    let detail = failure.into_detail();
    Err(ConfigError::Field {
        field: detail.field,
        problem: detail.message,
    })
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "ocelot".into()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{ImageEngine, NvmeTransport};

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn the_example_is_valid_and_complete() {
        let config = parse(include_str!("../examples/ocelotd.toml")).unwrap();
        assert_eq!(config.volumes.len(), 1);
        assert_eq!(config.devices.len(), 2);
        assert_eq!(config.exports.len(), 2);
        assert_eq!(config.listen, Listen::default());
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.log, Log::default());
        assert_eq!(config.spdk, Spdk::default());
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn devices_of_all_kinds() {
        let config = parse(
            r#"
            [[device]]
            name = "a"
            type = "image-file"
            path = "/x.img"
            [[device]]
            name = "b"
            type = "nvme"
            transport = "tcp"
            address = "127.0.0.1"
            service = "4420"
            subsystem_nqn = "nqn.2024-01.x:y"
            [[device]]
            name = "c"
            type = "memory"
            size_bytes = 1048576
            block_size = 4096
            [[device]]
            name = "d"
            type = "bdev"
            bdev = "Malloc0"
            [[volume]]
            device = "b"
            errors = "panic"
            "#,
        )
        .unwrap();
        assert_eq!(
            config.devices[0].source,
            DeviceSource::ImageFile {
                path: "/x.img".into(),
                block_size: 512,
                engine: ImageEngine::Auto,
                read_only: false,
            }
        );
        assert_eq!(config.volumes[0].errors, ErrorPolicy::Panic);
        assert!(matches!(
            config.devices[1].source,
            DeviceSource::Nvme {
                transport: NvmeTransport::Tcp,
                namespace_id: 1,
                ..
            }
        ));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, names) in [
            ("[listen]\nunix = \"\"\ntcp = []", "listen: "),
            (
                "[listen]\ntcp = [\"0.0.0.0:1\"]",
                "listen.tcp: 0.0.0.0:1 is not loopback",
            ),
            ("[listen]\nunix_mode = \"9\"", "listen.unix_mode: "),
            ("[listen]\nudp = 1", "udp"),
            ("[log]\nfilter = \"fs=loudly\"", "log.filter: "),
            ("[limits]\nhandles = 0", "limits.handles: "),
            (
                "[[volume]]\ndevice = \"x\"",
                "volume[0].device: there is no [[device]] \"x\"",
            ),
            (
                "[[device]]\nname = \"a b\"\ntype = \"bdev\"\nbdev = \"x\"",
                "device[0].name: ",
            ),
            (
                "[[device]]\nname = \"a\"\ntype = \"image-file\"\npath = \"x\"",
                "device[0].path: ",
            ),
            ("[[device]]\nname = \"a\"\ntype = \"floppy\"", "floppy"),
        ] {
            let message = parse(text).expect_err(text);
            assert!(message.contains(names), "{text:?} gave {message:?}");
        }
    }

    #[test]
    fn ipv4_loopback_in_ipv6_clothes_is_loopback() {
        assert!(is_loopback("::ffff:127.0.0.1".parse().unwrap()));
        assert!(is_loopback("::1".parse().unwrap()));
        assert!(!is_loopback("::".parse().unwrap()));
    }

    #[test]
    fn the_command_line_wins() {
        let args = Args::try_parse_from([
            "ocelotd",
            "--listen-unix",
            "/tmp/x.sock",
            "--no-tcp",
            "--log",
            "debug",
        ])
        .unwrap();
        let config = Config::load(&args).unwrap();
        assert_eq!(config.listen.unix, PathBuf::from("/tmp/x.sock"));
        assert!(config.listen.tcp.is_empty());
        assert_eq!(config.log.filter, "debug");
    }
}
