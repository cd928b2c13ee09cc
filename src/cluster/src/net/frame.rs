//! What travels on an o2net connection: one [`Handshake`] in each direction, then [`Frame`]s. All numbers are big-endian.
//! Layouts are those of the kernel's `fs/ocfs2/cluster/tcp_internal.h` and `tcp.h`.

use crate::timing::{Timing, millis};

/// The version that is spoken; another one ends the connection.
pub const PROTOCOL_VERSION: u64 = 11;
/// What the kernel sends as its connector id, and nobody looks at.
pub const KERNEL_CONNECTOR: u64 = 1;
/// The upper half of an Ocelot node's connector id: "Oclt". The lower half is its incarnation, see `session`.
pub const OCELOT_MARK: u32 = 0x4f63_6c74;
/// Bytes of a handshake.
pub const HANDSHAKE_LEN: usize = 32;
/// Bytes of a frame without its payload.
pub const HEADER_LEN: usize = 24;
/// Bytes of the longest payload.
pub const MAX_PAYLOAD: usize = 4096 - HEADER_LEN;

/// The first bytes in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    pub version: u64,
    pub connector: u64,
    pub heartbeat_timeout_ms: u32,
    pub idle_timeout_ms: u32,
    pub keepalive_delay_ms: u32,
    pub reconnect_delay_ms: u32,
}

/// Why a peer's handshake is refused: the values that the kernel compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its {what} is {theirs}, ours {ours}")]
pub struct Mismatch {
    pub what: &'static str,
    pub theirs: u64,
    pub ours: u64,
}

impl Handshake {
    /// What a node with these time-outs says.
    pub fn new(timing: &Timing, connector: u64) -> Self {
        Handshake {
            version: PROTOCOL_VERSION,
            connector,
            heartbeat_timeout_ms: millis(timing.fence_after()),
            idle_timeout_ms: millis(timing.idle),
            keepalive_delay_ms: millis(timing.keepalive),
            reconnect_delay_ms: millis(timing.reconnect),
        }
    }

    pub fn encode(&self) -> [u8; HANDSHAKE_LEN] {
        let mut bytes = [0; HANDSHAKE_LEN];
        bytes[0..8].copy_from_slice(&self.version.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.connector.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.heartbeat_timeout_ms.to_be_bytes());
        bytes[20..24].copy_from_slice(&self.idle_timeout_ms.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.keepalive_delay_ms.to_be_bytes());
        bytes[28..32].copy_from_slice(&self.reconnect_delay_ms.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; HANDSHAKE_LEN]) -> Self {
        Handshake {
            version: u64_at(bytes, 0),
            connector: u64_at(bytes, 8),
            heartbeat_timeout_ms: u32_at(bytes, 16),
            idle_timeout_ms: u32_at(bytes, 20),
            keepalive_delay_ms: u32_at(bytes, 24),
            reconnect_delay_ms: u32_at(bytes, 28),
        }
    }

    /// Whether a node that says `self` may talk to one that says `theirs`. The reconnect delay may differ.
    ///
    /// # Errors
    /// The first difference that matters, in the kernel's order.
    pub fn accepts(&self, theirs: &Handshake) -> Result<(), Mismatch> {
        let wide = u64::from;
        let compared = [
            ("protocol version", theirs.version, self.version),
            (
                "idle time-out in ms",
                wide(theirs.idle_timeout_ms),
                wide(self.idle_timeout_ms),
            ),
            (
                "keepalive delay in ms",
                wide(theirs.keepalive_delay_ms),
                wide(self.keepalive_delay_ms),
            ),
            (
                "heartbeat time-out in ms",
                wide(theirs.heartbeat_timeout_ms),
                wide(self.heartbeat_timeout_ms),
            ),
        ];
        let differs = |(_, theirs, ours): &(_, u64, u64)| theirs != ours;
        match compared.into_iter().find(differs) {
            None => Ok(()),
            Some((what, theirs, ours)) => Err(Mismatch { what, theirs, ours }),
        }
    }

    /// The incarnation of the Ocelot node that says this; none for a kernel node.
    pub fn incarnation(&self) -> Option<u32> {
        let mark = (self.connector >> 32) as u32;
        (mark == OCELOT_MARK).then_some(self.connector as u32)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// What a frame is, by its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    Message = 0xfa55,
    /// The answer to a message.
    Status = 0xfa56,
    KeepaliveRequest = 0xfa57,
    KeepaliveResponse = 0xfa58,
}

impl Kind {
    fn from_magic(magic: u16) -> Option<Self> {
        match magic {
            0xfa55 => Some(Kind::Message),
            0xfa56 => Some(Kind::Status),
            0xfa57 => Some(Kind::KeepaliveRequest),
            0xfa58 => Some(Kind::KeepaliveResponse),
            _ => None,
        }
    }
}

/// What o2net itself says to a message, before its handler does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SystemStatus {
    /// The handler's word counts.
    None = 0,
    /// Nobody handles this kind of message under this key.
    NoHandler = 1,
    /// The payload is longer than the handler takes.
    Overflow = 2,
}

impl SystemStatus {
    /// Any number that is not known is taken for [`SystemStatus::NoHandler`].
    pub fn from_wire(word: u32) -> Self {
        match word {
            0 => SystemStatus::None,
            2 => SystemStatus::Overflow,
            _ => SystemStatus::NoHandler,
        }
    }
}

/// A frame, field by field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub msg_type: u16,
    /// In a status: see [`SystemStatus`].
    pub system_status: u32,
    /// In a status: the handler's word.
    pub status: i32,
    pub key: u32,
    /// The sender's number for a message; its status has the same.
    pub number: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn message(msg_type: u16, key: u32, number: u32, payload: Vec<u8>) -> Self {
        Frame {
            kind: Kind::Message,
            msg_type,
            system_status: 0,
            status: 0,
            key,
            number,
            payload,
        }
    }

    /// The answer to the message with this type, key and number.
    pub fn status(
        (msg_type, key, number): (u16, u32, u32),
        system: SystemStatus,
        status: i32,
    ) -> Self {
        Frame {
            kind: Kind::Status,
            system_status: system as u32,
            status,
            ..Frame::message(msg_type, key, number, Vec::new())
        }
    }

    /// A keepalive: header and nothing else.
    pub fn keepalive(kind: Kind) -> Self {
        Frame {
            kind,
            ..Frame::message(0, 0, 0, Vec::new())
        }
    }

    /// # Panics
    /// When the payload is longer than [`MAX_PAYLOAD`]: a program error.
    pub fn encode(&self) -> Vec<u8> {
        assert!(
            self.payload.len() <= MAX_PAYLOAD,
            "a payload of {} bytes",
            self.payload.len()
        );
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.payload.len());
        bytes.extend((self.kind as u16).to_be_bytes());
        bytes.extend((self.payload.len() as u16).to_be_bytes());
        bytes.extend(self.msg_type.to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(self.system_status.to_be_bytes());
        bytes.extend(self.status.to_be_bytes());
        bytes.extend(self.key.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// Bytes that are no frame. The connection is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame begins with {0:#06x}")]
    Magic(u16),
    #[error("a frame with {0} bytes of payload, of {MAX_PAYLOAD} at most")]
    TooLong(u16),
}

/// What a stream holds next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Handshake(Handshake),
    Frame(Frame),
}

/// Takes one direction of a connection apart, however its bytes are cut.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes at the front that were handed out.
    used: usize,
    greeted: bool,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.used);
        self.used = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that are no whole item yet.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// The next item, when all of it is there.
    ///
    /// # Errors
    /// The stream holds something else.
    pub fn next_item(&mut self) -> Result<Option<Item>, FrameError> {
        let rest = &self.bytes[self.used..];
        if !self.greeted {
            let Some(bytes) = rest.first_chunk::<HANDSHAKE_LEN>() else {
                return Ok(None);
            };
            let handshake = Handshake::decode(bytes);
            self.greeted = true;
            self.used += HANDSHAKE_LEN;
            return Ok(Some(Item::Handshake(handshake)));
        }
        let Some(header) = rest.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let (magic, length) = (u16_at(header, 0), u16_at(header, 2));
        let kind = Kind::from_magic(magic).ok_or(FrameError::Magic(magic))?;
        if usize::from(length) > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        let end = HEADER_LEN + usize::from(length);
        let Some(payload) = rest.get(HEADER_LEN..end) else {
            return Ok(None);
        };
        let frame = Frame {
            kind,
            msg_type: u16_at(header, 4),
            system_status: u32_at(header, 8),
            status: u32_at(header, 12) as i32,
            key: u32_at(header, 16),
            number: u32_at(header, 20),
            payload: payload.to_vec(),
        };
        self.used += end;
        Ok(Some(Item::Frame(frame)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let kind = prop_oneof![
            Just(Kind::Message),
            Just(Kind::Status),
            Just(Kind::KeepaliveRequest),
            Just(Kind::KeepaliveResponse)
        ];
        let payload = proptest::collection::vec(any::<u8>(), 0..100);
        let numbers = any::<(u16, u32, i32, u32, u32)>();
        (kind, numbers, payload).prop_map(|(kind, numbers, payload)| Frame {
            kind,
            msg_type: numbers.0,
            system_status: numbers.1,
            status: numbers.2,
            key: numbers.3,
            number: numbers.4,
            payload,
        })
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_cut(
            frames in proptest::collection::vec(any_frame(), 0..20),
            cuts in proptest::collection::vec(1usize..200, 1..50),
            connector: u64,
        ) {
            let handshake = Handshake::new(&Timing::kernel(), connector);
            let mut bytes = handshake.encode().to_vec();
            frames.iter().for_each(|frame| bytes.extend(frame.encode()));
            let (mut decoder, mut items) = (Decoder::default(), Vec::new());
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (head, tail) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                decoder.push(head);
                while let Some(item) = decoder.next_item().unwrap() {
                    items.push(item);
                }
                rest = tail;
            }
            prop_assert_eq!(decoder.pending(), 0);
            let mut expected = vec![Item::Handshake(handshake)];
            expected.extend(frames.into_iter().map(Item::Frame));
            prop_assert_eq!(items, expected);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_item() {}
        }
    }

    #[test]
    fn what_is_no_frame_is_told() {
        let after = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(&[0; HANDSHAKE_LEN]);
            decoder.push(bytes);
            decoder.next_item().unwrap();
            decoder.next_item()
        };
        let mut bytes = Frame::keepalive(Kind::KeepaliveRequest).encode();
        bytes[1] = 0x59;
        assert_eq!(after(&bytes), Err(FrameError::Magic(0xfa59)));
        let mut bytes = Frame::message(1, 2, 3, vec![0; MAX_PAYLOAD]).encode();
        assert!(after(&bytes).unwrap().is_some());
        bytes[3] += 1;
        assert_eq!(after(&bytes), Err(FrameError::TooLong(4073)));
        assert_eq!(after(&bytes[..23]), Ok(None));
    }

    #[test]
    fn the_handshake_compares_what_the_kernel_compares() {
        let ours = Handshake::new(&Timing::kernel(), KERNEL_CONNECTOR);
        let differs = |change: fn(&mut Handshake)| {
            let mut theirs = ours;
            change(&mut theirs);
            ours.accepts(&theirs).err().map(|mismatch| mismatch.what)
        };
        assert_eq!(differs(|_| {}), None);
        assert_eq!(differs(|theirs| theirs.connector = 77), None);
        assert_eq!(differs(|theirs| theirs.reconnect_delay_ms = 1), None);
        assert_eq!(
            differs(|theirs| theirs.version = 12),
            Some("protocol version")
        );
        assert_eq!(
            differs(|theirs| theirs.idle_timeout_ms = 1),
            Some("idle time-out in ms")
        );
        assert_eq!(
            differs(|theirs| theirs.keepalive_delay_ms = 1),
            Some("keepalive delay in ms")
        );
        assert_eq!(
            differs(|theirs| theirs.heartbeat_timeout_ms = 1),
            Some("heartbeat time-out in ms")
        );
        assert_eq!(ours.incarnation(), None);
        let connector = u64::from(OCELOT_MARK) << 32 | 5;
        let ocelot = Handshake::new(&Timing::kernel(), connector);
        assert_eq!(ocelot.incarnation(), Some(5));
    }
}
