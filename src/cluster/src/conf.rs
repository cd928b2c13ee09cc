//! `cluster.conf`, as the o2cb tools write it: which nodes a cluster has, where they listen, and where they beat.
//!
//! ```text
//! cluster:
//!     name = web
//!     heartbeat_mode = local
//!     node_count = 1
//!
//! node:
//!     cluster = web
//!     number = 0
//!     ip_port = 7777
//!     ip_address = 10.0.0.1
//!     name = alpha
//! ```
//! Reading is as lenient as the tools are (any white space before a field, comments, fields and kinds of stanza they do
//! not know); what they take and the kernel refuses is an error here, with its line and field.

use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};

use dlm::NodeNr;

/// Where the tools keep it.
pub const DEFAULT_PATH: &str = "/etc/ocfs2/cluster.conf";
/// Bytes of a cluster's name.
pub const MAX_CLUSTER_NAME: usize = 16;
/// Bytes of a node's name.
pub const MAX_NODE_NAME: usize = 63;
/// Heartbeat regions of a cluster.
pub const MAX_REGIONS: usize = 32;
/// Longest file that is looked at: ten times what 255 nodes need.
const MAX_FILE: usize = 1 << 20;

/// A whole file: clusters in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterConf {
    pub clusters: Vec<ClusterDef>,
    /// What the file has that neither the tools nor Ocelot know: line and text.
    pub ignored: Vec<(usize, String)>,
}

/// Where a cluster's nodes beat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HeartbeatMode {
    /// On every volume that is mounted.
    #[default]
    Local,
    /// On the regions that the file lists.
    Global,
}

/// A cluster with its nodes and regions, each in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterDef {
    pub name: String,
    pub mode: HeartbeatMode,
    pub nodes: Vec<NodeDef>,
    pub regions: Vec<RegionName>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDef {
    pub number: NodeNr,
    /// The host's name without its domain.
    pub name: String,
    pub address: SocketAddrV4,
}

/// A heartbeat region's name: its volume's UUID as 32 upper-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionName([u8; 32]);

impl RegionName {
    /// The region of the volume with this UUID, if that is 32 upper-case hexadecimal digits.
    pub fn new(text: &str) -> Option<Self> {
        let digits = text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
        let bytes = text.as_bytes().try_into().ok()?;
        digits.then_some(RegionName(bytes))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(f, "{}", char::from(*byte)))
    }
}

impl fmt::Debug for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wrong with a file, and where. For a stanza that lacks something the line is the stanza's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {field}: {why}")]
pub struct ConfError {
    pub line: usize,
    /// The field (or kind of stanza) it is about.
    pub field: String,
    pub why: ConfWhy,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfWhy {
    #[error("neither a stanza (first column, ends with a colon) nor a field (`name = value`)")]
    Syntax,
    #[error("a field outside of a stanza")]
    Homeless,
    #[error("is missing")]
    Missing,
    #[error("is there twice in one stanza")]
    Repeated,
    #[error("`{0}` is not {1}")]
    Value(String, &'static str),
    #[error("`{0}` is taken by line {1}")]
    Taken(String, usize),
    #[error("there is no cluster `{0}`")]
    NoSuchCluster(String),
    #[error("more than {0}")]
    TooMany(usize),
}

struct Field<'a> {
    line: usize,
    name: &'a str,
    value: &'a str,
}

struct Stanza<'a> {
    line: usize,
    kind: &'a str,
    fields: Vec<Field<'a>>,
}

fn error(line: usize, field: &str, why: ConfWhy) -> ConfError {
    let field = field.chars().take(80).collect();
    ConfError { line, field, why }
}

fn stanzas(text: &str) -> Result<Vec<Stanza<'_>>, ConfError> {
    if text.len() > MAX_FILE {
        return Err(error(1, "file", ConfWhy::TooMany(MAX_FILE)));
    }
    let mut stanzas: Vec<Stanza<'_>> = Vec::new();
    for (line, text) in text.lines().enumerate().map(|(at, text)| (at + 1, text)) {
        let content = text.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if !text.starts_with([' ', '\t']) {
            let Some(kind) = content.strip_suffix(':') else {
                return Err(error(line, content, ConfWhy::Syntax));
            };
            let fields = Vec::new();
            stanzas.push(Stanza { line, kind, fields });
            continue;
        }
        let Some((name, value)) = content.split_once('=') else {
            return Err(error(line, content, ConfWhy::Syntax));
        };
        let (name, value) = (name.trim(), value.trim());
        let Some(stanza) = stanzas.last_mut() else {
            return Err(error(line, name, ConfWhy::Homeless));
        };
        if stanza.fields.iter().any(|field| field.name == name) {
            return Err(error(line, name, ConfWhy::Repeated));
        }
        stanza.fields.push(Field { line, name, value });
    }
    Ok(stanzas)
}

impl<'a> Stanza<'a> {
    fn get(&self, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|field| field.name == name)
    }

    fn need(&self, name: &str) -> Result<&Field<'a>, ConfError> {
        self.get(name)
            .ok_or_else(|| error(self.line, name, ConfWhy::Missing))
    }

    fn ignore(&self, known: &[&str], ignored: &mut Vec<(usize, String)>) {
        let unknown = self
            .fields
            .iter()
            .filter(|field| !known.contains(&field.name));
        ignored.extend(unknown.map(|field| (field.line, field.name.to_string())));
    }
}

impl Field<'_> {
    fn bad(&self, what: &'static str) -> ConfError {
        let value = self.value.chars().take(80).collect();
        error(self.line, self.name, ConfWhy::Value(value, what))
    }

    fn number<T: std::str::FromStr>(&self, what: &'static str) -> Result<T, ConfError> {
        // A sign is not for these numbers.
        let digits = self.value.bytes().all(|byte| byte.is_ascii_digit());
        let number = self.value.parse().ok().filter(|_| digits);
        number.ok_or_else(|| self.bad(what))
    }

    fn checked(&self, good: bool, what: &'static str) -> Result<String, ConfError> {
        match good && !self.value.is_empty() {
            true => Ok(self.value.to_string()),
            false => Err(self.bad(what)),
        }
    }

    fn node_number(&self) -> Result<NodeNr, ConfError> {
        const WHAT: &str = "a number from 0 to 254";
        NodeNr::new(self.number(WHAT)?).ok_or_else(|| self.bad(WHAT))
    }
}

impl ClusterConf {
    /// Reads a file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line and field.
    pub fn parse(text: &str) -> Result<Self, ConfError> {
        let stanzas = stanzas(text)?;
        let mut conf = ClusterConf::default();
        let mut places = Places::default();
        // Clusters first: the tools take a node's stanza that stands before its cluster's.
        for stanza in stanzas.iter().filter(|stanza| stanza.kind == "cluster") {
            conf.add_cluster(stanza, &mut places)?;
        }
        for stanza in &stanzas {
            match stanza.kind {
                "cluster" => {}
                "node" => conf.add_node(stanza, &mut places)?,
                "heartbeat" => conf.add_region(stanza, &mut places)?,
                kind => conf.ignored.push((stanza.line, format!("{kind}:"))),
            }
        }
        Ok(conf)
    }

    pub fn cluster(&self, name: &str) -> Option<&ClusterDef> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }

    fn add_cluster(&mut self, stanza: &Stanza<'_>, places: &mut Places) -> Result<(), ConfError> {
        let field = stanza.need("name")?;
        let alphanumeric = field.value.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let good = alphanumeric && field.value.len() <= MAX_CLUSTER_NAME;
        let name = field.checked(good, "1 to 16 letters and digits")?;
        places.claim(field, "", &name)?;
        if let Some(count) = stanza.get("node_count") {
            // The tools write how many nodes there are, and nobody believes it.
            count.number::<u16>("a number of nodes")?;
        }
        let mode = match stanza
            .get("heartbeat_mode")
            .map(|field| (field, field.value))
        {
            None | Some((_, "local")) => HeartbeatMode::Local,
            Some((_, "global")) => HeartbeatMode::Global,
            Some((field, _)) => return Err(field.bad("`local` or `global`")),
        };
        let known = ["name", "node_count", "heartbeat_mode"];
        stanza.ignore(&known, &mut self.ignored);
        self.clusters.push(ClusterDef {
            name,
            mode,
            ..ClusterDef::default()
        });
        Ok(())
    }

    fn home(&mut self, stanza: &Stanza<'_>) -> Result<&mut ClusterDef, ConfError> {
        let field = stanza.need("cluster")?;
        let of = self
            .clusters
            .iter_mut()
            .find(|cluster| cluster.name == field.value);
        let why = || ConfWhy::NoSuchCluster(field.value.chars().take(80).collect());
        of.ok_or_else(|| error(field.line, field.name, why()))
    }

    fn add_node(&mut self, stanza: &Stanza<'_>, places: &mut Places) -> Result<(), ConfError> {
        let cluster = self.home(stanza)?;
        let number = stanza.need("number")?;
        let node = number.node_number()?;
        places.claim(number, &cluster.name, &node.to_string())?;
        let name = stanza.need("name")?;
        let plain = name
            .value
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/');
        let good = plain && name.value.len() <= MAX_NODE_NAME;
        let text = name.checked(good, "a host name of 1 to 63 bytes")?;
        places.claim(name, &cluster.name, &text)?;
        let address = stanza.need("ip_address")?;
        let ip: Ipv4Addr = address
            .value
            .parse()
            .map_err(|_| address.bad("an IPv4 address"))?;
        places.claim(address, &cluster.name, &ip.to_string())?;
        const PORT: &str = "a port from 1 to 65535";
        let field = stanza.need("ip_port")?;
        let port = field.number::<u16>(PORT)?;
        if port == 0 {
            return Err(field.bad(PORT));
        }
        cluster.nodes.push(NodeDef {
            number: node,
            name: text,
            address: SocketAddrV4::new(ip, port),
        });
        let known = ["cluster", "number", "ip_port", "ip_address", "name"];
        stanza.ignore(&known, &mut self.ignored);
        Ok(())
    }

    fn add_region(&mut self, stanza: &Stanza<'_>, places: &mut Places) -> Result<(), ConfError> {
        let cluster = self.home(stanza)?;
        let field = stanza.need("region")?;
        let name = RegionName::new(field.value);
        let name = name.ok_or_else(|| field.bad("32 upper-case hexadecimal digits"))?;
        places.claim(field, &cluster.name, field.value)?;
        if cluster.regions.len() == MAX_REGIONS {
            let why = ConfWhy::TooMany(MAX_REGIONS);
            return Err(error(field.line, field.name, why));
        }
        cluster.regions.push(name);
        stanza.ignore(&["cluster", "region"], &mut self.ignored);
        Ok(())
    }
}

/// Which values are taken, and where: cluster, field, value, line.
#[derive(Default)]
struct Places(Vec<(String, String, String, usize)>);

impl Places {
    fn claim(&mut self, field: &Field<'_>, cluster: &str, value: &str) -> Result<(), ConfError> {
        let same = |(of, name, taken, _): &&(String, String, String, usize)| {
            of == cluster && name == field.name && taken == value
        };
        if let Some((.., line)) = self.0.iter().find(same) {
            let why = ConfWhy::Taken(value.into(), *line);
            return Err(error(field.line, field.name, why));
        }
        let entry = (cluster.into(), field.name.into(), value.into(), field.line);
        self.0.push(entry);
        Ok(())
    }
}

impl ClusterDef {
    pub fn node(&self, number: NodeNr) -> Option<&NodeDef> {
        self.nodes.iter().find(|node| node.number == number)
    }

    pub fn node_named(&self, name: &str) -> Option<&NodeDef> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

impl fmt::Display for ClusterConf {
    /// The file, byte for byte as the tools write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for cluster in &self.clusters {
            let mode = match cluster.mode {
                HeartbeatMode::Local => "local",
                HeartbeatMode::Global => "global",
            };
            let (name, count) = (&cluster.name, cluster.nodes.len());
            write!(
                text,
                "cluster:\n\tname = {name}\n\theartbeat_mode = {mode}\n\tnode_count = {count}\n\n"
            )?;
        }
        for cluster in &self.clusters {
            for region in &cluster.regions {
                let name = &cluster.name;
                write!(
                    text,
                    "heartbeat:\n\tcluster = {name}\n\tregion = {region}\n\n"
                )?;
            }
        }
        for cluster in &self.clusters {
            for node in &cluster.nodes {
                let (ip, port) = (node.address.ip(), node.address.port());
                let (of, number, name) = (&cluster.name, node.number, &node.name);
                write!(
                    text,
                    "node:\n\tcluster = {of}\n\tnumber = {number}\n\tip_port = {port}\n\tip_address = {ip}\n\tname = {name}\n\n"
                )?;
            }
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
#[path = "conf_tests.rs"]
mod tests;
