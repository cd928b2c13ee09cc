//! What two nodes have to say to each other, apart from the connection they say it on.
//!
//! The kernel's o2net knows no sessions: when a connection breaks, messages without an answer count as lost with their
//! peer, and its lock manager hangs or ends in confusion if the peer lives on. Between two Ocelot nodes a broken
//! connection loses nothing, repeats nothing and changes no order, neither of messages nor of answers between them:
//!
//! ```text
//! handshake    connector id = mark and incarnation (the kernel sends 1 there and never reads it)
//! resume       the first frame: "I have had n frames of this session", as a keepalive response with the mark as key
//! then         all frames after the peer's n, in their old order, and whatever is new
//! ```
//! A frame is kept until the peer is known to have it: an answer to a message says so of all that was sent up to that
//! message; the status word of a message (which the kernel sends as 0 and never reads) counts what its sender has had.
//! A session ends when heartbeat says that the peer is down.

use std::collections::{BTreeMap, VecDeque};

use super::frame::{Frame, Kind, OCELOT_MARK};
use crate::limits::{QUEUED_MESSAGES, WINDOW};

/// Who the peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// It has not said yet.
    Unknown,
    Kernel,
    Ocelot(u32),
}

/// A message that waits to be sent.
#[derive(Debug)]
struct Queued {
    tag: u64,
    msg_type: u16,
    key: u32,
    payload: Vec<u8>,
}

/// A message that waits for its answer.
#[derive(Debug)]
struct Asked {
    tag: u64,
    /// Its place in the order of all frames.
    place: u64,
}

#[derive(Debug)]
pub(super) struct Session {
    pub peer: Peer,
    queue: VecDeque<Queued>,
    unanswered: BTreeMap<u32, Asked>,
    next_number: u32,
    /// Frames that the peer may not have, oldest first; the last has the place `sent`.
    log: VecDeque<Frame>,
    sent: u64,
    received: u64,
}

impl Session {
    pub fn new() -> Self {
        Session {
            peer: Peer::Unknown,
            queue: VecDeque::new(),
            unanswered: BTreeMap::new(),
            next_number: 0,
            log: VecDeque::new(),
            sent: 0,
            received: 0,
        }
    }

    fn resumes(&self) -> bool {
        matches!(self.peer, Peer::Ocelot(_))
    }

    /// Puts a message in line.
    pub fn enqueue(&mut self, tag: u64, msg_type: u16, key: u32, payload: Vec<u8>) -> bool {
        if self.queue.len() >= QUEUED_MESSAGES {
            return false;
        }
        self.queue.push_back(Queued {
            tag,
            msg_type,
            key,
            payload,
        });
        true
    }

    /// The bytes of the next message to send, if the window has room.
    pub fn next_to_send(&mut self) -> Option<Vec<u8>> {
        if self.unanswered.len() >= WINDOW {
            return None;
        }
        let Queued {
            tag,
            msg_type,
            key,
            payload,
        } = self.queue.pop_front()?;
        // A number is free again once its message is answered; the kernel ignores answers to numbers above its largest.
        while self.unanswered.contains_key(&self.next_number) {
            self.next_number = self.next_number.wrapping_add(1) & i32::MAX as u32;
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1) & i32::MAX as u32;
        let place = self.sent + 1;
        self.unanswered.insert(number, Asked { tag, place });
        Some(self.send(Frame::message(msg_type, key, number, payload)))
    }

    /// The bytes of a frame that takes its place in the order now.
    pub fn send(&mut self, frame: Frame) -> Vec<u8> {
        self.sent += 1;
        let bytes = self.bytes(&frame);
        if self.resumes() {
            self.log.push_back(frame);
        }
        bytes
    }

    /// As `send`, while no connection is there: it is sent when the session is resumed.
    pub fn keep(&mut self, frame: Frame) {
        if self.resumes() {
            self.sent += 1;
            self.log.push_back(frame);
        }
    }

    fn bytes(&self, frame: &Frame) -> Vec<u8> {
        if self.resumes() && frame.kind == Kind::Message {
            let status = self.received as u32 as i32;
            let frame = Frame {
                status,
                ..frame.clone()
            };
            return frame.encode();
        }
        frame.encode()
    }

    /// What an Ocelot node says first on a new connection.
    pub fn resume_frame(&self) -> Frame {
        Frame {
            key: OCELOT_MARK,
            status: self.received as u32 as i32,
            ..Frame::keepalive(Kind::KeepaliveResponse)
        }
    }

    /// The peer's first word on a new connection: what to send it again. Nothing when it claims to have what was never sent,
    /// or to lack what it had.
    pub fn resume(&mut self, frame: &Frame) -> Option<Vec<Vec<u8>>> {
        let said = frame.kind == Kind::KeepaliveResponse && frame.key == OCELOT_MARK;
        if !said || !self.peer_has(frame.status as u32) {
            return None;
        }
        Some(self.log.iter().map(|frame| self.bytes(frame)).collect())
    }

    /// The peer has had so many frames, by the lower half of their number; whether that can be.
    fn peer_has(&mut self, count: u32) -> bool {
        let missing = u64::from((self.sent as u32).wrapping_sub(count));
        if missing > self.log.len() as u64 {
            return false;
        }
        self.log.drain(..self.log.len() - missing as usize);
        true
    }

    /// A message or an answer came in. Whether what it says of this side's frames can be.
    pub fn received(&mut self, frame: &Frame) -> bool {
        self.received += 1;
        !self.resumes() || frame.kind != Kind::Message || self.peer_has(frame.status as u32)
    }

    /// An answer came in: whose. The peer has all that was sent before that message.
    pub fn answered(&mut self, number: u32) -> Option<u64> {
        let Asked { tag, place } = self.unanswered.remove(&number)?;
        let missing = (self.sent - place) as usize;
        let known = self.log.len().saturating_sub(missing);
        self.log.drain(..known);
        Some(tag)
    }

    /// The connection to a kernel node broke: what it has not answered is lost.
    pub fn take_unanswered(&mut self) -> Vec<u64> {
        let unanswered = std::mem::take(&mut self.unanswered);
        unanswered.into_values().map(|asked| asked.tag).collect()
    }

    /// The session is over: everything that was to be said, in its order.
    pub fn end(self) -> Vec<u64> {
        let mut asked: Vec<Asked> = self.unanswered.into_values().collect();
        asked.sort_by_key(|asked| asked.place);
        let queued = self.queue.into_iter().map(|queued| queued.tag);
        asked
            .into_iter()
            .map(|asked| asked.tag)
            .chain(queued)
            .collect()
    }

    /// Whether anything has been said in it.
    pub fn is_fresh(&self) -> bool {
        self.sent == 0 && self.received == 0
    }

    /// Messages without an answer.
    pub fn waiting(&self) -> usize {
        self.unanswered.len() + self.queue.len()
    }

    /// Frames that may have to be sent again.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.log.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Decoder, Handshake, Item, SystemStatus};
    use crate::timing::Timing;
    use proptest::prelude::*;

    fn ocelot() -> Session {
        let mut session = Session::new();
        session.peer = Peer::Ocelot(7);
        session
    }

    fn decode(bytes: &[u8]) -> Frame {
        let mut decoder = Decoder::default();
        decoder.push(&Handshake::new(&Timing::kernel(), 1).encode());
        decoder.push(bytes);
        decoder.next_item().unwrap();
        match decoder.next_item().unwrap() {
            Some(Item::Frame(frame)) => frame,
            other => panic!("{other:?}"),
        }
    }

    fn answer(number: u32) -> Frame {
        Frame::status((500, 1, number), SystemStatus::None, 0)
    }

    #[test]
    fn the_window_bounds_what_is_unanswered() {
        for mut session in [ocelot(), Session::new()] {
            for tag in 0..1000 {
                assert!(session.enqueue(tag, 500, 1, Vec::new()));
            }
            let sent: Vec<_> = std::iter::from_fn(|| session.next_to_send()).collect();
            assert_eq!(sent.len(), WINDOW);
            assert_eq!(session.answered(5), Some(5));
            assert_eq!(session.answered(5), None, "answered twice");
            assert!(session.next_to_send().is_some() && session.next_to_send().is_none());
            assert_eq!(session.waiting(), 999);
            assert_eq!(session.end().len(), 999);
        }
    }

    #[test]
    fn numbers_go_round_and_pass_over_those_in_use() {
        let mut session = ocelot();
        session.next_number = i32::MAX as u32 - 1;
        (0..3).for_each(|tag| assert!(session.enqueue(tag, 1, 1, Vec::new())));
        let numbers =
            std::iter::from_fn(|| session.next_to_send().map(|bytes| decode(&bytes).number));
        assert_eq!(
            numbers.collect::<Vec<_>>(),
            [i32::MAX as u32 - 1, i32::MAX as u32, 0]
        );
        session.next_number = i32::MAX as u32;
        session.enqueue(9, 1, 1, Vec::new());
        assert_eq!(
            session.next_to_send().map(|bytes| decode(&bytes).number),
            Some(1)
        );
    }

    #[test]
    fn impossible_counts_are_refused() {
        let mut session = ocelot();
        (0..3).for_each(|tag| assert!(session.enqueue(tag, 1, 1, Vec::new())));
        while session.next_to_send().is_some() {}
        let said = |count: u32| Frame {
            status: count as i32,
            ..Session::new().resume_frame()
        };
        assert_eq!(session.resume(&said(4)), None, "never sent");
        assert_eq!(session.resume(&said(2)).unwrap().len(), 1);
        assert_eq!(session.resume(&said(1)), None, "it had that");
        assert_eq!(
            session.resume(&Frame::keepalive(Kind::KeepaliveResponse)),
            None
        );
    }

    proptest! {
        /// Two sessions over a connection that breaks anywhere: each side has every frame of the other once, in order.
        #[test]
        fn frames_come_once_and_in_order(steps in proptest::collection::vec(0u8..10, 1..400)) {
            let mut sessions = [ocelot(), ocelot()];
            let mut wires: [VecDeque<Vec<u8>>; 2] = Default::default();
            let mut had: [Vec<(Kind, u32)>; 2] = Default::default();
            let mut said: [Vec<(Kind, u32)>; 2] = Default::default();
            let mut tags = 0;
            for step in steps {
                let side = usize::from(step % 2);
                match step / 2 {
                    // Asks.
                    0 | 1 => {
                        tags += 1;
                        sessions[side].enqueue(tags, 500, 1, Vec::new());
                        if let Some(bytes) = sessions[side].next_to_send() {
                            said[side].push((Kind::Message, decode(&bytes).number));
                            wires[side].push_back(bytes);
                        }
                    }
                    // A frame arrives, and is answered.
                    2 | 3 => if let Some(bytes) = wires[1 - side].pop_front() {
                        let frame = decode(&bytes);
                        prop_assert!(sessions[side].received(&frame));
                        had[side].push((frame.kind, frame.number));
                        match frame.kind {
                            Kind::Message => {
                                let bytes = sessions[side].send(answer(frame.number));
                                said[side].push((Kind::Status, frame.number));
                                wires[side].push_back(bytes);
                            }
                            _ => prop_assert!(sessions[side].answered(frame.number).is_some()),
                        }
                    },
                    // The connection breaks: what is on its way is lost; both connect again.
                    _ => {
                        let resumes = [sessions[0].resume_frame(), sessions[1].resume_frame()];
                        for side in 0..2 {
                            let again = sessions[side].resume(&resumes[1 - side]);
                            prop_assert!(again.is_some());
                            wires[side] = again.unwrap().into();
                        }
                    }
                }
                for side in 0..2 {
                    let other = &said[1 - side];
                    prop_assert_eq!(&had[side][..], &other[..had[side].len()]);
                    prop_assert_eq!(had[side].len() + wires[1 - side].len(), other.len());
                    prop_assert!(sessions[side].kept() <= said[side].len());
                }
            }
        }
    }
}
