//! What kernel nodes said to each other and wrote into their heartbeat files: every frame and every block is decoded,
//! and encoded back to the same bytes.
//!
//! The traces (`data/*.pcap.gz`) are of Linux 6.1 in virtual machines: two and three nodes that mount, share files,
//! leave, die and recover. `data/hb-*.bin` are the first sixteen blocks of the heartbeat file at several moments.
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use cluster::Timing;
use cluster::net::frame::KERNEL_CONNECTOR;
use cluster::net::{Decoder, Frame, Handshake, Item, Kind, SystemStatus};
use dlm::wire::{self, MsgType, reply};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ondisk::{BlockNr, HeartbeatBlock};

const PORT: u16 = 7777;

type Flow = ([u8; 4], u16, [u8; 4], u16);

/// One direction of a connection, put in order by sequence number.
#[derive(Default)]
struct Stream {
    next: Option<u32>,
    early: BTreeMap<u32, Vec<u8>>,
    bytes: Vec<u8>,
}

impl Stream {
    fn push(&mut self, sequence: u32, payload: &[u8]) {
        let Some(next) = &mut self.next else {
            return; // the trace began within the connection
        };
        if !payload.is_empty() {
            self.early.insert(sequence, payload.to_vec());
        }
        // Sent again, with bytes that are there already or reaching beyond them.
        while let Some((&at, _)) = self
            .early
            .iter()
            .find(|(at, _)| at.wrapping_sub(*next) > 1 << 31 || **at == *next)
        {
            let piece = self.early.remove(&at).unwrap();
            let known = next.wrapping_sub(at) as usize;
            let new = piece.get(known..).unwrap_or_default();
            self.bytes.extend(new);
            *next = next.wrapping_add(new.len() as u32);
        }
    }
}

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// The directions of all connections of a trace, in the order of their first packets.
fn streams(name: &str) -> Vec<(Flow, Stream)> {
    let file = std::fs::File::open(data(name)).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .unwrap();
    let mut reader = pcap_file::pcap::PcapReader::new(&bytes[..]).unwrap();
    let mut streams: Vec<(Flow, Stream)> = Vec::new();
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
        let ports = (tcp.source_port(), tcp.destination_port());
        if ports.0 != PORT && ports.1 != PORT {
            continue;
        }
        let (from, to) = (ip.header().source(), ip.header().destination());
        let flow = (from, ports.0, to, ports.1);
        if tcp.syn() {
            let next = Some(tcp.sequence_number().wrapping_add(1));
            streams.push((
                flow,
                Stream {
                    next,
                    ..Stream::default()
                },
            ));
        } else if let Some((_, stream)) = streams.iter_mut().rev().find(|(of, _)| *of == flow) {
            stream.push(tcp.sequence_number(), tcp.payload());
        }
    }
    streams
}

const TRACES: [&str; 4] = [
    "basic-2node.pcap.gz",
    "crash-3node.pcap.gz",
    "death-recovery.pcap.gz",
    "join-lock-leave.pcap.gz",
];

/// Frames of a stream, each checked to encode to the bytes it came from; and its handshake, if it got so far.
fn frames(stream: &Stream) -> (Option<Handshake>, Vec<Frame>) {
    let (mut decoder, mut at) = (Decoder::default(), 0);
    let (mut handshake, mut frames) = (None, Vec::new());
    decoder.push(&stream.bytes);
    while let Some(item) = decoder.next_item().unwrap() {
        let encoded = match &item {
            Item::Handshake(handshake) => handshake.encode().to_vec(),
            Item::Frame(frame) => frame.encode(),
        };
        let end = at + encoded.len();
        assert_eq!(encoded, stream.bytes[at..end], "{item:?} at byte {at}");
        at = end;
        match item {
            Item::Handshake(found) => handshake = Some(found),
            Item::Frame(frame) => frames.push(frame),
        }
    }
    assert_eq!(decoder.pending(), stream.bytes.len() - at);
    (handshake, frames)
}

/// Heartbeat's own messages.
const NEGOTIATE: std::ops::RangeInclusive<u16> = 1..=2;

/// Names every field of a message's payload, and gives it back as bytes.
fn check_payload(frame: &Frame) -> String {
    if NEGOTIATE.contains(&frame.msg_type) {
        assert_eq!(frame.payload.len(), 1);
        return format!("node {}", frame.payload[0]);
    }
    let message = wire::decode(frame.msg_type, &frame.payload).unwrap();
    assert_eq!(message.encode(), frame.payload, "{message:?}");
    format!("{message:?}")
}

#[test]
fn every_frame_of_the_kernels_is_read_and_written_back() {
    let mut types = BTreeSet::new();
    for name in TRACES {
        let (mut handshakes, mut counts) = (0, BTreeMap::<u16, usize>::new());
        let mut domains = BTreeMap::new();
        for (flow, stream) in streams(name) {
            let (handshake, frames) = frames(&stream);
            if let Some(handshake) = handshake {
                handshakes += 1;
                assert_eq!(handshake.connector, KERNEL_CONNECTOR);
                assert_eq!(handshake.incarnation(), None);
                // The oracle's runs differ in their dead threshold only.
                let threshold = handshake.heartbeat_timeout_ms / 2000 + 1;
                assert!([31, 7].contains(&threshold), "{name}: {handshake:?}");
                let timing = Timing {
                    dead_threshold: threshold,
                    ..Timing::kernel()
                };
                assert_eq!(
                    Handshake::new(&timing, KERNEL_CONNECTOR),
                    handshake,
                    "{flow:?}"
                );
            }
            for frame in &frames {
                *counts.entry(frame.kind as u16).or_default() += 1;
                match frame.kind {
                    Kind::Message => {
                        assert!(!check_payload(frame).is_empty());
                        types.insert(frame.msg_type);
                        assert_eq!((frame.system_status, frame.status), (0, 0));
                        if let Ok(wire::Message::QueryJoin { domain, .. }) =
                            wire::decode(frame.msg_type, &frame.payload)
                        {
                            domains.insert(domain.key(), domain);
                        }
                    }
                    Kind::Status => {
                        assert!(frame.payload.is_empty());
                        let system = SystemStatus::from_wire(frame.system_status);
                        assert_eq!(system as u32, frame.system_status);
                    }
                    Kind::KeepaliveRequest | Kind::KeepaliveResponse => {
                        assert_eq!(*frame, Frame::keepalive(frame.kind));
                    }
                }
            }
        }
        assert!(handshakes >= 2 && !domains.is_empty(), "{name}");
        assert!(counts[&(Kind::Message as u16)] > 50, "{name}: {counts:?}");
        assert!(counts.len() >= 2, "{name}: {counts:?}");
    }
    // All that kernels can be brought to say: nobody gave up joining, nobody left while two others stayed.
    let never = [MsgType::CancelJoin, MsgType::MigrateRequest];
    for expected in MsgType::ALL {
        let seen = types.contains(&(expected as u16));
        assert!(seen || never.contains(&expected), "no {expected}");
    }
}

/// Every status belongs to a message that the other direction sent, with its type and key; none is answered twice.
#[test]
fn every_message_is_answered_once() {
    for name in TRACES {
        let streams = streams(name);
        let mut answered = 0;
        for (index, ((from, from_port, to, to_port), stream)) in streams.iter().enumerate() {
            let back = (*to, *to_port, *from, *from_port);
            // The other direction of the same connection is the nearest in the order of the trace.
            let Some((_, other)) = streams
                .iter()
                .enumerate()
                .filter(|(_, (flow, _))| *flow == back)
                .min_by_key(|(at, _)| at.abs_diff(index))
                .map(|(_, entry)| entry)
            else {
                continue;
            };
            let mut open = BTreeMap::<u32, Vec<(u16, u32)>>::new();
            for frame in frames(stream)
                .1
                .iter()
                .filter(|frame| frame.kind == Kind::Message)
            {
                let asked = open.entry(frame.number).or_default();
                asked.push((frame.msg_type, frame.key));
            }
            for frame in frames(other)
                .1
                .iter()
                .filter(|frame| frame.kind == Kind::Status)
            {
                let asked = open.get_mut(&frame.number).unwrap();
                assert_eq!(asked.remove(0), (frame.msg_type, frame.key), "{name}");
                answered += 1;
                if let Some(MsgType::QueryJoin) = MsgType::from_wire(frame.msg_type)
                    && frame.system_status == 0
                {
                    let reply = reply::JoinReply::from_wire(frame.status).unwrap();
                    assert_eq!(reply.to_wire(), frame.status);
                }
            }
            let unanswered: usize = open.values().map(Vec::len).sum();
            assert!(
                unanswered <= 2,
                "{name}: {unanswered} messages without an answer"
            );
        }
        assert!(answered > 50, "{name}: {answered}");
    }
}

#[test]
fn heartbeat_blocks_of_the_kernels_are_read_and_written_back() {
    let mut seen = BTreeMap::new();
    for name in [
        "hb-after-kill.bin",
        "hb-after-umount.bin",
        "hb-all-mounted.bin",
        "hb-before-kill.bin",
        "hb-others-left.bin",
    ] {
        let bytes = std::fs::read(data(name)).unwrap();
        for (node, block) in bytes.chunks(512).enumerate() {
            HeartbeatBlock::validate(block, BlockNr(node as u64), node as u8).unwrap();
            let written = HeartbeatBlock::of(block);
            if written.is_silent() {
                assert!(block.iter().all(|byte| *byte == 0), "{name} {node}");
                continue;
            }
            let (seq, generation) = (written.hb_seq.get(), written.hb_generation.get());
            let dead_ms = written.hb_dead_ms.get();
            assert!(
                [62_000, 14_000].contains(&dead_ms),
                "{name} {node}: {dead_ms}"
            );
            let mut again = vec![0xaa; 512];
            HeartbeatBlock::init(&mut again, node as u8, seq, generation, dead_ms);
            assert_eq!(again, block, "{name} {node}");
            *seen.entry((name, generation == 0)).or_insert(0) += 1;
        }
    }
    // Whoever left has generation 0, whoever died or lives has its own.
    assert_eq!(seen.get(&("hb-after-umount.bin", false)), None, "{seen:?}");
    assert!(
        seen.contains_key(&("hb-all-mounted.bin", false)),
        "{seen:?}"
    );
    assert!(
        seen.contains_key(&("hb-before-kill.bin", false)),
        "{seen:?}"
    );
}
