//! What kernel nodes said to each other, against `wire`: every payload decodes, and encodes back to the same bytes.
//!
//! `samples.txt` has one payload of each kind. The whole traces are in the oracle's directory (`OCELOT_ORACLE`, or
//! `../shared/oracle` beside the repository); where that is not, the tests of traces have nothing to look at.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

use dlm::wire::{self, AstKind, LockFlags, Message, MsgType, reply};
use dlm::{LockName, NodeNr};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A message or a status reply of a trace.
struct Frame {
    msg_type: u16,
    key: u32,
    status: i32,
    payload: Vec<u8>,
    is_status: bool,
}

/// One direction of a connection, put in order.
#[derive(Default)]
struct Stream {
    next: u32,
    pending: BTreeMap<u32, Vec<u8>>,
    bytes: Vec<u8>,
}

impl Stream {
    fn push(&mut self, sequence: u32, payload: &[u8]) {
        if !payload.is_empty() && sequence.wrapping_sub(self.next) < 1 << 31 {
            self.pending.insert(sequence, payload.to_vec());
        }
        while let Some(next) = self.pending.remove(&self.next) {
            self.next = self.next.wrapping_add(next.len() as u32);
            self.bytes.extend(next);
        }
    }

    fn frames(&self) -> Vec<Frame> {
        let word = |at: usize| u32::from_be_bytes(self.bytes[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_be_bytes(self.bytes[at..at + 2].try_into().unwrap());
        let mut frames = Vec::new();
        let mut at = 32; // the handshake
        while at + 24 <= self.bytes.len() {
            let (magic, length) = (half(at), usize::from(half(at + 2)));
            assert!(
                (0xfa55..=0xfa58).contains(&magic),
                "magic {magic:#x} at {at}"
            );
            if at + 24 + length > self.bytes.len() {
                break; // the trace ends within a frame
            }
            if magic <= 0xfa56 {
                frames.push(Frame {
                    msg_type: half(at + 4),
                    key: word(at + 16),
                    status: word(at + 12) as i32,
                    payload: self.bytes[at + 24..at + 24 + length].to_vec(),
                    is_status: magic == 0xfa56,
                });
            }
            at += 24 + length;
        }
        frames
    }
}

fn traces() -> Vec<PathBuf> {
    let directory = std::env::var_os("OCELOT_ORACLE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracle"),
        PathBuf::from,
    );
    let Ok(entries) = std::fs::read_dir(directory.join("pcap")) else {
        return Vec::new();
    };
    let mut traces: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    traces.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "pcap")
    });
    traces.sort();
    assert!(traces.len() >= 4, "{traces:?}");
    traces
}

fn frames(trace: &PathBuf) -> Vec<Frame> {
    let file = std::fs::File::open(trace).unwrap();
    let mut reader = pcap_file::pcap::PcapReader::new(file).unwrap();
    let mut streams = BTreeMap::<_, Stream>::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.unwrap();
        let Ok(packet) = SlicedPacket::from_ethernet(&packet.data) else {
            continue;
        };
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) =
            (packet.net, packet.transport)
        else {
            continue;
        };
        let (from, to) = (ip.header().source(), ip.header().destination());
        let key = (from, tcp.source_port(), to, tcp.destination_port());
        if tcp.source_port() != 7777 && tcp.destination_port() != 7777 {
            continue;
        }
        let stream = streams.entry(key).or_default();
        if tcp.syn() {
            stream.next = tcp.sequence_number().wrapping_add(1);
        } else {
            stream.push(tcp.sequence_number(), tcp.payload());
        }
    }
    streams.values().flat_map(Stream::frames).collect()
}

#[test]
fn a_payload_of_each_kind_decodes_and_encodes_to_the_same_bytes() {
    let mut types = BTreeSet::new();
    for line in include_str!("samples.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let mut words = line.split(' ');
        let msg_type: u16 = words.next().unwrap().parse().unwrap();
        let length: usize = words.next().unwrap().parse().unwrap();
        let hex = words.next().unwrap_or_default();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let mut payload: Vec<_> = (0..hex.len()).step_by(2).map(byte).collect();
        payload.resize(length, 0);
        let message =
            wire::decode(msg_type, &payload).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(message.msg_type() as u16, msg_type, "{line}");
        assert_eq!(message.encode(), payload, "{message:?}");
        types.insert(message.msg_type());
    }
    complete(&types);
}

/// Everything is there that kernel nodes can be brought to say.
fn complete(types: &BTreeSet<MsgType>) {
    // Nobody gave up joining, and nobody left while two others stayed.
    let never = [MsgType::CancelJoin, MsgType::MigrateRequest];
    for expected in MsgType::ALL {
        assert!(
            types.contains(&expected) || never.contains(&expected),
            "no {expected}"
        );
    }
}

#[test]
fn every_payload_of_the_kernels_decodes_and_encodes_to_the_same_bytes() {
    let mut types = BTreeSet::new();
    let traces = traces();
    for trace in &traces {
        let mut keys = BTreeMap::new();
        for frame in frames(trace)
            .iter()
            .filter(|frame| !frame.is_status && frame.msg_type >= 500)
        {
            let at = || {
                format!(
                    "{}: {} {:02x?}",
                    trace.display(),
                    frame.msg_type,
                    frame.payload
                )
            };
            let message = wire::decode(frame.msg_type, &frame.payload)
                .unwrap_or_else(|error| panic!("{}: {error}", at()));
            assert_eq!(message.msg_type() as u16, frame.msg_type, "{}", at());
            assert_eq!(message.encode(), frame.payload, "{message:?} {}", at());
            assert!(
                frame.payload.len() <= message.msg_type().max_len(),
                "{}",
                at()
            );
            types.insert(message.msg_type());
            // What the message says of its domain agrees with the key it came under.
            if let Message::QueryJoin {
                domain, dlm, fs, ..
            } = &message
            {
                keys.insert(domain.key(), *domain);
                assert_eq!((*dlm, *fs), (wire::DLM_VERSION, wire::FS_VERSION));
            }
            if message.msg_type().is_join() {
                assert_eq!(frame.key, wire::JOIN_KEY, "{}", at());
            } else if let Some(domain) = keys.get(&frame.key) {
                assert_eq!(message.key(domain), frame.key, "{}", at());
            }
        }
        assert!(!keys.is_empty(), "{}: nobody joined", trace.display());
    }
    if !traces.is_empty() {
        complete(&types);
    }
}

#[test]
fn the_status_words_of_the_kernels_have_a_meaning() {
    let mut words = BTreeSet::new();
    for trace in traces() {
        for frame in frames(&trace)
            .iter()
            .filter(|frame| frame.is_status && frame.msg_type >= 500)
        {
            words.insert((frame.msg_type, frame.status));
        }
    }
    for (msg_type, word) in words {
        let known = match MsgType::from_wire(msg_type).unwrap() {
            MsgType::MasterRequest => reply::MasterReply::from_wire(word).is_some(),
            MsgType::AssertMaster => reply::AssertReply::from_bits(word).is_some(),
            MsgType::CreateLock
            | MsgType::ConvertLock
            | MsgType::ProxyAst
            | MsgType::UnlockLock => reply::DlmStatus::from_wire(word).is_some(),
            MsgType::QueryJoin => {
                reply::JoinReply::from_wire(word).is_some_and(|reply| reply.to_wire() == word)
            }
            MsgType::MasterRequery => (0..=255).contains(&word),
            MsgType::DerefLockres | MsgType::MigrateRequest => [0, 1].contains(&word),
            // A node that leaves takes no resources any more.
            MsgType::MigLockres => [0, reply::EINVAL].contains(&word),
            _ => word == 0,
        };
        assert!(known, "{msg_type}: {word}");
    }
}

/// One frame of a trace, field by field, as the kernel's structure has them.
#[test]
fn a_conversion_with_its_value_block_is_read_field_by_field() {
    let mut payload = vec![1, 0, 0, 0, 0, 0, 0, 0x2a]; // cookie: node 1, lock 42
    payload.extend([0x60, 0, 0x05, 0]); // CONVERT | VALBLK | PUT_LVB | GET_LVB
    payload.extend([0, 1, 3, 31]); // node 1, PR, 31 bytes of name
    let name = b"M0000000000000000000019df7fb6f7";
    payload.extend(name);
    payload.extend([0; 33]);
    payload.extend([7; 64]);
    let Message::ConvertLock {
        node,
        cookie,
        flags,
        mode,
        name: got,
        lvb,
    } = wire::decode(504, &payload).unwrap()
    else {
        panic!("another message")
    };
    assert_eq!(
        (node.get(), cookie, mode),
        (1, 0x0100_0000_0000_002a, dlm::Mode::Pr)
    );
    let expected = LockFlags::CONVERT | LockFlags::VALBLK | LockFlags::PUT_LVB | LockFlags::GET_LVB;
    assert_eq!((flags, got), (expected, LockName::new(name).unwrap()));
    assert_eq!(lvb.unwrap().0, [7; 64]);
    // The same without the value block that its flags promise.
    assert!(wire::decode(504, &payload[..80]).is_err());

    let ast = Message::ProxyAst {
        node: NodeNr::new(0).unwrap(),
        cookie,
        flags: LockFlags::empty(),
        kind: AstKind::Bast(dlm::Mode::Ex),
        name: got,
        lvb: None,
    };
    assert_eq!(ast.encode()[12..16], [0, 1, 5, 31]);
}
