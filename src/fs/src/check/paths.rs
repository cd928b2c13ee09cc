//! After the phases: the paths of inodes that have findings.

use std::collections::{HashMap, HashSet};

use ondisk::BlockNr;

use super::Checker;
use super::view::Step;

/// More than that many directories above one another is a circle.
const DEPTH_MAX: usize = 4096;

impl Checker<'_> {
    pub(super) async fn find_paths(&mut self) -> Step<()> {
        let wanted: HashSet<u64> = self
            .report
            .findings
            .iter()
            .filter_map(|finding| finding.inode)
            .collect();
        self.find_names(&wanted).await?;
        let mut names = std::mem::take(&mut self.names);
        let mut paths: HashMap<u64, Option<Vec<u8>>> = HashMap::new();
        for &ino in &wanted {
            let path = self.path(ino, &mut names).await?;
            paths.insert(ino, path);
        }
        for finding in &mut self.report.findings {
            finding.path = finding
                .inode
                .and_then(|ino| paths.get(&ino).cloned().flatten());
        }
        Ok(())
    }

    /// Names for what the directories phase did not know to look for.
    async fn find_names(&mut self, wanted: &HashSet<u64>) -> Step<()> {
        let missing: HashSet<u64> = wanted
            .iter()
            .copied()
            .filter(|ino| !self.names.contains_key(ino) && !self.links.is_dir(BlockNr(*ino)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        for (dir, _) in self.links.sorted_dirs() {
            let mut walk = self.open_dir(dir).await?;
            while let Some(block) = self.next_dir_block(&mut walk).await? {
                for entry in block.entries().map_while(Result::ok) {
                    if missing.contains(&entry.inode.0) && !entry.is_free() {
                        self.names
                            .insert(entry.inode.0, (dir.0, entry.name.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    async fn path(
        &mut self,
        ino: u64,
        names: &mut HashMap<u64, (u64, Vec<u8>)>,
    ) -> Step<Option<Vec<u8>>> {
        let (root, system) = (self.geometry.root_dir.0, self.geometry.system_dir.0);
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut at = ino;
        while at != root && at != system {
            if parts.len() > DEPTH_MAX {
                return Ok(None);
            }
            let (parent, name) = match names.get(&at) {
                Some(known) => known.clone(),
                None => {
                    let parent = self.links.parent(BlockNr(at)).filter(|nr| nr.is_some());
                    let Some(parent) = parent else {
                        return Ok(None);
                    };
                    let Some(name) = self.name_in(parent, BlockNr(at)).await? else {
                        return Ok(None);
                    };
                    names.insert(at, (parent.0, name.clone()));
                    (parent.0, name)
                }
            };
            parts.push(name);
            at = parent;
        }
        let mut path = if at == system {
            b"//".to_vec()
        } else {
            b"/".to_vec()
        };
        parts.reverse();
        path.extend(parts.join(&b'/'));
        Ok(Some(path))
    }

    async fn name_in(&mut self, dir: BlockNr, ino: BlockNr) -> Step<Option<Vec<u8>>> {
        let mut walk = self.open_dir(dir).await?;
        while let Some(block) = self.next_dir_block(&mut walk).await? {
            for (index, entry) in block.entries().map_while(Result::ok).enumerate() {
                let dots = block.logical == 0 && index < 2;
                if entry.inode == ino && !dots {
                    return Ok(Some(entry.name.to_vec()));
                }
            }
        }
        Ok(None)
    }
}
