//! What a tree on a volume must look like, kept in plain maps, and the comparison with what the
//! volume shows. Used by the tests that change a volume at random or crash it.

use std::collections::{BTreeMap, BTreeSet};

use fs::volume::{FileKind, Ino, Volume};

use super::{get, names};

/// A name in a directory of the model.
pub type Name = (NodeId, Vec<u8>);
pub type NodeId = usize;
pub const ROOT: NodeId = 0;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    File(Vec<u8>),
    Dir,
    Symlink(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub ino: Ino,
    pub body: Body,
    pub permissions: u16,
    pub uid: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    pub fn new(ino: Ino, body: Body, permissions: u16, uid: u32) -> Node {
        Node {
            ino,
            body,
            permissions,
            uid,
            xattrs: BTreeMap::new(),
        }
    }

    pub fn is_dir(&self) -> bool {
        self.body == Body::Dir
    }
}

/// Nodes by number (numbers are never reused), and the names that lead to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub nodes: BTreeMap<NodeId, Node>,
    pub names: BTreeMap<Name, NodeId>,
    next: NodeId,
}

impl Tree {
    pub fn new(root: Ino) -> Tree {
        let root = Node::new(root, Body::Dir, 0o755, 0);
        Tree {
            nodes: BTreeMap::from([(ROOT, root)]),
            names: BTreeMap::new(),
            next: 1,
        }
    }

    pub fn add(&mut self, name: Name, node: Node) -> NodeId {
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        self.names.insert(name, id);
        id
    }

    /// Takes a name away; a node without any is gone.
    pub fn remove(&mut self, name: &Name) {
        let id = self.names.remove(name).unwrap();
        if !self.names.values().any(|other| *other == id) {
            self.nodes.remove(&id);
        }
    }

    pub fn links(&self, id: NodeId) -> u32 {
        if self.nodes[&id].is_dir() {
            let below = self.names.iter().filter(|((dir, _), _)| *dir == id);
            2 + below.filter(|(_, id)| self.nodes[id].is_dir()).count() as u32
        } else {
            self.names.values().filter(|other| **other == id).count() as u32
        }
    }

    pub fn is_empty(&self, dir: NodeId) -> bool {
        !self.names.keys().any(|(parent, _)| *parent == dir)
    }

    /// Is `dir` at or below `top`?
    pub fn is_below(&self, mut dir: NodeId, top: NodeId) -> bool {
        loop {
            if dir == top {
                return true;
            }
            match self.names.iter().find(|(_, id)| **id == dir) {
                Some(((parent, _), _)) => dir = *parent,
                None => return false,
            }
        }
    }

    /// Where the volume and the model differ.
    pub async fn differences(&self, volume: &Volume) -> Vec<String> {
        let mut found = Vec::new();
        for (id, node) in &self.nodes {
            if let Err(problem) = self.compare(volume, *id, node).await {
                let name = self.names.iter().find(|(_, other)| *other == id);
                let name =
                    name.map(|((dir, name), _)| format!("{dir}/{}", String::from_utf8_lossy(name)));
                found.push(format!("node {id} ({name:?}, {:?}): {problem}", node.ino));
            }
        }
        found
    }

    async fn compare(&self, volume: &Volume, id: NodeId, node: &Node) -> Result<(), String> {
        let wrong = |error: fs::Error| error.to_string();
        let attr = volume.getattr(node.ino).await.map_err(wrong)?;
        // The root has lost+found beside what the model knows.
        let links = self.links(id) + u32::from(id == ROOT);
        same("links", attr.links, links)?;
        if id != ROOT {
            same("permissions", attr.permissions, node.permissions)?;
            same("uid", attr.uid, node.uid)?;
        }
        match &node.body {
            Body::Dir => {
                same("kind", attr.kind, FileKind::Directory)?;
                let mut shown: BTreeSet<Vec<u8>> = names(volume, node.ino)
                    .await
                    .map_err(wrong)?
                    .into_iter()
                    .collect();
                if id == ROOT {
                    shown.remove(&b"lost+found"[..]);
                }
                let known: BTreeSet<Vec<u8>> = self
                    .names
                    .keys()
                    .filter(|(dir, _)| *dir == id)
                    .map(|(_, name)| name.clone())
                    .collect();
                let print = |set: Vec<&Vec<u8>>| {
                    set.iter()
                        .map(|n| String::from_utf8_lossy(n).into_owned())
                        .collect::<Vec<_>>()
                };
                let more = print(shown.difference(&known).collect());
                let less = print(known.difference(&shown).collect());
                if !more.is_empty() || !less.is_empty() {
                    return Err(format!("names: unexpected {more:?}, missing {less:?}"));
                }
                for name in &known {
                    let to = self.names[&(id, name.clone())];
                    let hit = volume.lookup(node.ino, name).await.map_err(wrong)?;
                    same("entry", hit.ino, self.nodes[&to].ino)?;
                }
            }
            Body::Symlink(target) => {
                let shown = volume.readlink(node.ino).await.map_err(wrong)?;
                if shown != *target {
                    return Err("another target".into());
                }
            }
            Body::File(content) => {
                same("size", attr.size_bytes, content.len() as u64)?;
                let shown = get(volume, node.ino).await.map_err(wrong)?;
                if let Some(at) = (0..content.len()).find(|&at| shown[at] != content[at]) {
                    let end = (at..content.len()).find(|&at| shown[at] == content[at]);
                    return Err(format!(
                        "content of {} bytes differs from {at} to {end:?}: {:02x?} is not {:02x?}",
                        content.len(),
                        &shown[at..shown.len().min(at + 8)],
                        &content[at..content.len().min(at + 8)]
                    ));
                }
            }
        }
        let listed = volume.listxattr(node.ino).await.map_err(wrong)?;
        let listed: BTreeSet<_> = listed.into_iter().map(|(name, _)| name).collect();
        let known: BTreeSet<_> = node.xattrs.keys().cloned().collect();
        same("xattr names", listed, known)?;
        for (name, value) in &node.xattrs {
            let shown = volume.getxattr(node.ino, name).await.map_err(wrong)?;
            if shown != *value {
                return Err(format!(
                    "another value of {}",
                    String::from_utf8_lossy(name)
                ));
            }
        }
        Ok(())
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, shown: T, known: T) -> Result<(), String> {
    if shown == known {
        Ok(())
    } else {
        Err(format!("{what}: {shown:?} is not {known:?}"))
    }
}
