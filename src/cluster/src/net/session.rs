//! What two nodes have to say to each other, apart from the connection they say it on.
//!
//! The kernel's o2net knows no sessions: when a connection breaks, messages without an answer count as lost with their
//! peer, and its lock manager hangs or ends in confusion if the peer lives on. Between two Ocelot nodes a broken
//! connection loses nothing. Each tells in its handshake, in a field the kernel sends and never reads, that it is one
//! and which *incarnation* (a number drawn at every start). When the same two incarnations connect again, both send again
//! what has no answer yet; the receiver knows by the message's number what it has had, and repeats its answer.
//!
//! ```text
//! sender      numbers 1, 2, 3 …; sends n only when all up to n − WINDOW are answered
//! receiver    handles each number once, in order; keeps its answers to the last WINDOW numbers
//! ```
//! A session ends when heartbeat says that the peer is down.

use std::collections::{BTreeMap, VecDeque};

use super::frame::{Frame, SystemStatus};
use crate::limits::{QUEUED_MESSAGES, WINDOW};

/// Who the peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// It has not said yet.
    Unknown,
    Kernel,
    Ocelot(u32),
}

/// A message that waits for its answer, or to be sent.
#[derive(Debug, Clone)]
struct Outgoing {
    tag: u64,
    frame: Frame,
}

/// What to do with a message that came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Handle it; its place in the session.
    New(u64),
    /// It was handled, and this is the answer.
    Answered(Frame),
    /// It is being handled.
    Known,
    /// A number that cannot come now.
    Gap,
}

#[derive(Debug)]
pub(super) struct Session {
    pub peer: Peer,
    /// The last message's place: its number, counted on beyond 32 bits.
    sent: u64,
    unanswered: BTreeMap<u64, Outgoing>,
    queue: VecDeque<Outgoing>,
    had: u64,
    answers: BTreeMap<u64, Option<Frame>>,
}

impl Session {
    pub fn new() -> Self {
        Session {
            peer: Peer::Unknown,
            sent: 0,
            unanswered: BTreeMap::new(),
            queue: VecDeque::new(),
            had: 0,
            answers: BTreeMap::new(),
        }
    }

    /// Puts a message in line.
    pub fn enqueue(&mut self, tag: u64, msg_type: u16, key: u32, payload: Vec<u8>) -> bool {
        if self.queue.len() >= QUEUED_MESSAGES {
            return false;
        }
        let frame = Frame::message(msg_type, key, 0, payload);
        self.queue.push_back(Outgoing { tag, frame });
        true
    }

    /// The next message to send, if the window has room.
    pub fn next_to_send(&mut self) -> Option<&Frame> {
        let oldest = self.unanswered.first_key_value();
        let oldest = oldest.map_or(self.sent + 1, |(at, _)| *at);
        if self.sent + 1 >= oldest + u64::from(WINDOW) {
            return None;
        }
        let mut message = self.queue.pop_front()?;
        self.sent += 1;
        message.frame.number = self.sent as u32;
        let message = self.unanswered.entry(self.sent).or_insert(message);
        Some(&message.frame)
    }

    /// What has no answer, in order: to be sent again.
    pub fn unanswered(&self) -> impl Iterator<Item = &Frame> {
        self.unanswered.values().map(|message| &message.frame)
    }

    /// An answer came in: whose.
    pub fn answered(&mut self, number: u32) -> Option<u64> {
        let (oldest, _) = self.unanswered.first_key_value()?;
        let place = oldest + u64::from(number.wrapping_sub(*oldest as u32));
        self.unanswered.remove(&place).map(|message| message.tag)
    }

    /// A message came in.
    pub fn incoming(&mut self, number: u32) -> Incoming {
        if self.peer == Peer::Kernel {
            // Its numbers are slots that it uses again.
            self.had += 1;
            return Incoming::New(self.had);
        }
        match number.wrapping_sub(self.had as u32) as i32 {
            1 => {
                self.had += 1;
                self.answers.insert(self.had, None);
                let old = self.had.saturating_sub(u64::from(WINDOW));
                self.answers = self.answers.split_off(&(old + 1));
                Incoming::New(self.had)
            }
            ahead if ahead > 1 => Incoming::Gap,
            behind => {
                let place = self.had.checked_sub(u64::from(behind.unsigned_abs()));
                match place.and_then(|place| self.answers.get(&place)) {
                    Some(Some(answer)) => Incoming::Answered(answer.clone()),
                    Some(None) | None => Incoming::Known,
                }
            }
        }
    }

    /// The handler's answer to the message at this place.
    pub fn answer(
        &mut self,
        place: u64,
        message: (u16, u32, u32),
        system: SystemStatus,
        status: i32,
    ) -> Frame {
        let frame = Frame::status(message, system, status);
        if let Some(answer) = self.answers.get_mut(&place) {
            *answer = Some(frame.clone());
        }
        frame
    }

    /// The connection to a kernel node broke: what it has not answered is lost.
    pub fn take_unanswered(&mut self) -> Vec<u64> {
        let unanswered = std::mem::take(&mut self.unanswered);
        unanswered
            .into_values()
            .map(|message| message.tag)
            .collect()
    }

    /// The session is over: everything that was to be said.
    pub fn end(self) -> Vec<u64> {
        let all = self.unanswered.into_values().chain(self.queue);
        all.map(|message| message.tag).collect()
    }

    pub fn waiting(&self) -> usize {
        self.unanswered.len() + self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(messages: u64) -> Session {
        let mut session = Session::new();
        session.peer = Peer::Ocelot(7);
        for tag in 0..messages {
            assert!(session.enqueue(tag, 500, 1, vec![tag as u8]));
        }
        session
    }

    #[test]
    fn the_window_holds_back_what_the_receiver_could_not_remember() {
        let mut session = sender(1000);
        let mut numbers = Vec::new();
        while let Some(frame) = session.next_to_send() {
            numbers.push(frame.number);
        }
        assert_eq!(numbers, (1..=WINDOW).collect::<Vec<_>>());
        // Answers out of order: the oldest decides.
        assert_eq!(session.answered(2), Some(1));
        assert!(session.next_to_send().is_none());
        assert_eq!(session.answered(1), Some(0));
        let next: Vec<_> =
            std::iter::from_fn(|| session.next_to_send().map(|f| f.number)).collect();
        assert_eq!(next, [WINDOW + 1, WINDOW + 2]);
        assert_eq!(session.answered(1), None, "answered twice");
        assert_eq!(session.answered(WINDOW + 3), None, "never sent");
        assert_eq!(session.unanswered().count(), WINDOW as usize);
        assert_eq!(session.end().len(), 998);
    }

    #[test]
    fn what_is_sent_again_is_handled_once_and_answered_again() {
        let mut session = sender(0);
        let New(place) = session.incoming(1) else {
            panic!("new")
        };
        use Incoming::*;
        assert_eq!(session.incoming(1), Known, "no answer yet");
        let answer = session.answer(place, (500, 9, 1), SystemStatus::None, -5);
        assert_eq!(session.incoming(1), Answered(answer));
        assert_eq!(session.incoming(3), Gap);
        for number in 2..=WINDOW + 1 {
            assert!(matches!(session.incoming(number), New(_)), "{number}");
        }
        assert_eq!(
            session.incoming(1),
            Known,
            "forgotten: no sender asks for it"
        );
    }

    #[test]
    fn numbers_go_round() {
        let mut session = sender(3);
        session.sent = u64::from(u32::MAX) - 1;
        let numbers: Vec<_> =
            std::iter::from_fn(|| session.next_to_send().map(|f| f.number)).collect();
        assert_eq!(numbers, [u32::MAX, 0, 1]);
        assert_eq!(session.answered(1), Some(2));
        assert_eq!(session.answered(u32::MAX), Some(0));
        session.had = u64::from(u32::MAX) - 1;
        for number in [u32::MAX, 0, 1] {
            assert!(matches!(session.incoming(number), Incoming::New(_)));
        }
        assert_eq!(session.incoming(u32::MAX), Incoming::Known);
    }

    #[test]
    fn a_kernel_uses_its_numbers_again() {
        let mut session = Session::new();
        session.peer = Peer::Kernel;
        for _ in 0..3 {
            assert!(matches!(session.incoming(0), Incoming::New(_)));
        }
    }
}
