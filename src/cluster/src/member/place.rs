//! Where a heartbeat region is, and its blocks as bytes.

use std::collections::BTreeMap;
use std::rc::Rc;

use dlm::{NodeNr, NodeSet};
use ondisk::{BlockNr, HeartbeatBlock};
use runtime::{BlockDevice, BlockDeviceExt, DeviceError};

use crate::conf::RegionName;
use crate::heartbeat::{Beat, Reading};

/// Blocks of a region at most: one for each node there can be.
pub const MAX_BLOCKS: u64 = 255;

/// A region: node n's block is the n-th. The kernel's tools make the block as long as the device's, whatever the
/// volume's are, and take as many as the heartbeat file has of the *volume's* blocks.
#[derive(Clone)]
pub struct RegionPlace {
    pub name: RegionName,
    pub device: Rc<dyn BlockDevice>,
    /// Where the heartbeat file's only extent begins, in bytes.
    pub offset: u64,
    /// Blocks in it.
    pub blocks: u64,
}

impl RegionPlace {
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.device.info().block_size)
    }

    /// Whether there is a block for each of the nodes, on the device.
    pub(crate) fn holds(&self, nodes: NodeSet) -> bool {
        let info = self.device.info();
        let last = nodes.iter().last().map_or(0, |node| u64::from(node.get()));
        let end = self.blocks.checked_mul(self.block_bytes());
        let end = end.and_then(|bytes| bytes.checked_add(self.offset));
        last < self.blocks.min(MAX_BLOCKS)
            && end.is_some_and(|end| end <= info.size_bytes())
            && self.offset.is_multiple_of(self.block_bytes())
    }

    fn block_of(&self, node: NodeNr) -> u64 {
        self.offset + u64::from(node.get()) * self.block_bytes()
    }

    /// Reads the blocks of these nodes, all in one.
    pub(crate) async fn read(
        &self,
        nodes: NodeSet,
    ) -> Result<BTreeMap<NodeNr, Reading>, DeviceError> {
        let (Some(first), Some(last)) = (nodes.first(), nodes.iter().last()) else {
            return Ok(BTreeMap::new());
        };
        let bytes = self.block_bytes();
        let count = u64::from(last.get() - first.get()) + 1;
        let buffer = self.device.allocate((count * bytes) as usize);
        let (buffer, result) = self.device.read(self.block_of(first), buffer).await;
        result?;
        let reading = |node: NodeNr| {
            let at = usize::from(node.get() - first.get()) * bytes as usize;
            (node, parse(&buffer[at..at + bytes as usize], node))
        };
        Ok(nodes.iter().map(reading).collect())
    }

    pub(crate) async fn write(&self, node: NodeNr, beat: Beat) -> Result<(), DeviceError> {
        let mut buffer = self.device.allocate(self.block_bytes() as usize);
        let Beat {
            sequence,
            generation,
            dead_ms,
            ..
        } = beat;
        HeartbeatBlock::init(&mut buffer, node.get(), sequence, generation, dead_ms);
        self.device.write(self.block_of(node), buffer).await.1
    }
}

fn parse(block: &[u8], node: NodeNr) -> Reading {
    let found = HeartbeatBlock::of(block);
    // Another's number in the block is for the machine to judge; the checksum decides here.
    if found.hb_cksum.get() != HeartbeatBlock::checksum(block) {
        return Reading::Garbled;
    }
    debug_assert!(HeartbeatBlock::validate(block, BlockNr(0), found.hb_node).is_ok());
    Reading::Block(Beat {
        sequence: found.hb_seq.get(),
        node: if found.hb_seq.get() == 0 {
            node.get()
        } else {
            found.hb_node
        },
        generation: found.hb_generation.get(),
        dead_ms: found.hb_dead_ms.get(),
    })
}
