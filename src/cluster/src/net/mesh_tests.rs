use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn nr(number: u8) -> NodeNr {
    NodeNr::new(number).unwrap()
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

fn mesh(node: u8, incarnation: Option<u32>) -> Mesh {
    Mesh::new(MeshConfig {
        node: nr(node),
        timing: Timing::kernel(),
        peers: (0..4).map(|number| (nr(number), address(number))).collect(),
        incarnation,
    })
}

/// Two meshes and the connection between them: node 1, which connects, and node 0.
struct Pair {
    meshes: [Mesh; 2],
    now: Duration,
    conn: u64,
    /// What each said besides writing.
    said: [Vec<Action>; 2],
    /// Whether bytes pass.
    passing: bool,
    held: Vec<(usize, ConnId, Vec<u8>)>,
}

impl Pair {
    fn new(incarnations: [Option<u32>; 2]) -> Self {
        let mut pair = Pair {
            meshes: [mesh(0, incarnations[0]), mesh(1, incarnations[1])],
            now: SECOND,
            conn: 0,
            said: [Vec::new(), Vec::new()],
            passing: true,
            held: Vec::new(),
        };
        pair.give(0, Event::Up(nr(1)));
        pair.give(1, Event::Up(nr(0)));
        pair
    }

    fn give(&mut self, side: usize, event: Event) {
        self.step(side, event);
        while self.passing && !self.held.is_empty() {
            let (side, conn, bytes) = self.held.remove(0);
            self.step(side, Event::Received { conn, bytes });
        }
    }

    fn step(&mut self, side: usize, event: Event) {
        let actions = self.meshes[side].step(self.now, event);
        for action in actions {
            match action {
                Action::Write(conn, bytes) => self.held.push((1 - side, conn, bytes)),
                Action::Connect { peer, attempt } => {
                    self.conn += 1;
                    let (conn, from) = (ConnId(self.conn), address(1));
                    let event = Event::Connected {
                        peer,
                        attempt,
                        conn,
                    };
                    self.step(side, event);
                    self.step(1 - side, Event::Accepted { conn, from });
                }
                other => self.said[side].push(other),
            }
        }
    }

    fn said(&mut self, side: usize) -> Vec<Action> {
        std::mem::take(&mut self.said[side])
    }

    /// What was delivered, and nothing else.
    fn delivered(&mut self, side: usize) -> Vec<(Vec<u8>, ReplyTo)> {
        let said = self.said(side).into_iter();
        said.filter_map(|action| match action {
            Action::Deliver { payload, reply, .. } => Some((payload, reply)),
            _ => None,
        })
        .collect()
    }

    fn answers(&mut self, side: usize) -> Vec<(u64, Result<i32, SendError>)> {
        let said = self.said(side).into_iter();
        said.filter_map(|action| match action {
            Action::Answered { tag, result, .. } => Some((tag, result)),
            _ => None,
        })
        .collect()
    }

    fn send(&mut self, side: usize, tag: u64) {
        let to = nr(1 - side as u8);
        self.give(
            side,
            Event::Send {
                to,
                tag,
                msg_type: 500,
                key: 1,
                payload: vec![tag as u8],
            },
        );
    }

    fn reply(&mut self, side: usize, to: ReplyTo, status: i32) {
        let system = SystemStatus::None;
        self.give(side, Event::Reply { to, system, status });
    }

    /// Passes time in small steps, with both looking at their clocks when they want.
    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            let due = self.meshes.iter().filter_map(Mesh::next_timer).min();
            self.now = due.map_or(end, |due| due.clamp(self.now, end));
            self.give(0, Event::Timer);
            self.give(1, Event::Timer);
            let stuck = self
                .meshes
                .iter()
                .filter_map(Mesh::next_timer)
                .any(|due| due <= self.now);
            assert!(!stuck, "a timer that does not go away");
        }
    }

    /// The connection breaks, for both; bytes on the way are lost.
    fn reset(&mut self) {
        let conn = ConnId(self.conn);
        self.held.clear();
        self.give(0, Event::Broken(conn));
        self.give(1, Event::Broken(conn));
    }
}

const OCELOTS: [Option<u32>; 2] = [Some(7), Some(8)];

#[test]
fn the_higher_number_connects_and_both_are_told() {
    for incarnations in [OCELOTS, [None, None], [Some(7), None], [None, Some(8)]] {
        let mut pair = Pair::new(incarnations);
        assert_eq!(pair.said(0), [Action::Connected(nr(1))]);
        assert_eq!(pair.said(1), [Action::Connected(nr(0))]);
        assert!(pair.meshes[0].is_connected(nr(1)));
        pair.send(0, 5);
        let delivered = pair.delivered(1);
        assert_eq!(delivered[0].0, [5]);
        pair.reply(1, delivered[0].1, -3);
        assert_eq!(pair.answers(0), [(5, Ok(-3))]);
    }
}

#[test]
fn keepalives_keep_a_quiet_connection_up() {
    let mut pair = Pair::new(OCELOTS);
    pair.wait(SECOND * 300);
    assert_eq!(pair.said(0), [Action::Connected(nr(1))]);
    assert_eq!(pair.said(1), [Action::Connected(nr(0))]);
}

/// A silent connection is lost for quorum after 30 s; 66 s later the peer is still up; if it speaks again, all is well.
#[test]
fn silence_is_told_and_forgiven() {
    let mut pair = Pair::new(OCELOTS);
    pair.said(0);
    pair.passing = false;
    pair.wait(SECOND * 29);
    assert_eq!(pair.said(0), []);
    pair.wait(SECOND);
    assert_eq!(pair.said(0), [Action::Disconnected(nr(1))]);
    pair.send(0, 1);
    pair.wait(SECOND * 65);
    assert_eq!(pair.said(0), []);
    pair.wait(SECOND);
    assert_eq!(pair.said(0), [Action::StillUp(nr(1))]);
    pair.wait(SECOND * 66);
    assert_eq!(pair.said(0), [Action::StillUp(nr(1))], "asked again");
    pair.passing = true;
    pair.wait(SECOND * 2);
    assert_eq!(pair.said(0), [Action::Connected(nr(1))]);
    assert_eq!(
        pair.delivered(1).len(),
        1,
        "what was said meanwhile has come"
    );
    pair.wait(SECOND * 100);
    assert_eq!(pair.said(0), []);
}

#[test]
fn between_ocelots_a_reset_loses_nothing_and_repeats_nothing() {
    let mut pair = Pair::new(OCELOTS);
    pair.said(0);
    // One is lost on its way there, one on its way back, one is being handled.
    pair.send(0, 1);
    let handled = pair.delivered(1);
    pair.send(0, 2);
    let open = pair.delivered(1);
    pair.passing = false;
    pair.reply(1, handled[0].1, 11);
    pair.send(0, 3);
    pair.reset();
    pair.passing = true;
    assert_eq!(
        pair.said(0),
        [Action::Close(ConnId(1)), Action::Disconnected(nr(1))]
    );
    pair.send(0, 4);
    pair.wait(SECOND * 2);
    let said = pair.said(0);
    assert!(said.contains(&Action::Connected(nr(1))));
    let answered = Action::Answered {
        to: nr(1),
        tag: 1,
        result: Ok(11),
    };
    assert!(said.contains(&answered), "{said:?}");
    let delivered = pair.delivered(1);
    let payloads: Vec<_> = delivered.iter().map(|(payload, _)| payload[0]).collect();
    assert_eq!(payloads, [3, 4]);
    // What is handled while no connection is there is answered later, before what is answered later still.
    pair.passing = false;
    pair.reset();
    pair.reply(1, open[0].1, 22);
    pair.passing = true;
    pair.wait(SECOND * 2);
    pair.reply(1, delivered[1].1, 44);
    pair.reply(1, delivered[0].1, 33);
    assert_eq!(pair.answers(0), [(2, Ok(22)), (4, Ok(44)), (3, Ok(33))]);
    assert_eq!(pair.meshes[0].waiting(nr(1)), 0);
}

#[test]
fn with_a_kernel_node_a_reset_loses_what_has_no_answer() {
    let mut pair = Pair::new([Some(7), None]);
    pair.said(0);
    pair.send(0, 1);
    pair.send(1, 2);
    let asked = pair.delivered(0);
    pair.reset();
    assert_eq!(pair.answers(0), [(1, Err(SendError::Died))]);
    assert_eq!(pair.answers(1), [(2, Err(SendError::Died))]);
    pair.send(0, 3);
    pair.wait(SECOND * 2);
    assert_eq!(pair.delivered(1).len(), 1);
    // The late answer to a question that is forgotten.
    pair.reply(0, asked[0].1, 9);
    assert_eq!(pair.answers(1), []);
}

#[test]
fn a_death_ends_what_was_being_said() {
    let mut pair = Pair::new(OCELOTS);
    pair.send(0, 1);
    pair.passing = false;
    pair.send(0, 2);
    let open = pair.delivered(1);
    pair.said(0);
    pair.give(0, Event::Down(nr(1)));
    let died = |tag| Action::Answered {
        to: nr(1),
        tag,
        result: Err(SendError::Died),
    };
    assert_eq!(
        pair.said(0),
        [
            Action::Close(ConnId(1)),
            Action::Disconnected(nr(1)),
            died(1),
            died(2)
        ]
    );
    pair.send(0, 3);
    assert_eq!(pair.answers(0), [(3, Err(SendError::Down))]);
    // The other side learns it too, and answers of its old life go nowhere.
    pair.give(1, Event::Down(nr(0)));
    pair.held.clear();
    pair.passing = true;
    pair.give(0, Event::Up(nr(1)));
    pair.give(1, Event::Up(nr(0)));
    pair.said(0);
    pair.reply(1, open[0].1, 5);
    assert_eq!(pair.said(0), []);
    pair.send(0, 4);
    assert_eq!(pair.delivered(1).len(), 1);
}

/// A node that has started anew connects before its death was noticed: it must wait until its old life is over.
#[test]
fn an_old_life_must_end_before_a_new_one_is_talked_to() {
    let mut pair = Pair::new(OCELOTS);
    pair.send(0, 1);
    pair.said(0);
    pair.meshes[1] = mesh(1, Some(9));
    pair.give(1, Event::Up(nr(0)));
    let refused = Action::Refused(Refusal::OldLife(nr(1)));
    assert!(pair.said(0).contains(&refused));
    pair.reset();
    pair.wait(SECOND * 3);
    assert!(pair.said(0).contains(&refused), "it tries again");
    pair.give(0, Event::Down(nr(1)));
    assert_eq!(pair.answers(0), [(1, Err(SendError::Died))]);
    pair.give(0, Event::Up(nr(1)));
    pair.reset();
    pair.wait(SECOND * 3);
    assert!(pair.said(0).contains(&Action::Connected(nr(1))));
}

#[test]
fn strangers_and_wrong_directions_are_refused() {
    let mut mesh = mesh(1, Some(1));
    let mut knock = |from| {
        let event = Event::Accepted {
            conn: ConnId(1),
            from,
        };
        mesh.step(SECOND, event)
    };
    let refused = |refusal| vec![Action::Refused(refusal), Action::Close(ConnId(1))];
    let stranger = Ipv4Addr::new(1, 2, 3, 4);
    assert_eq!(knock(stranger), refused(Refusal::Stranger(stranger)));
    assert_eq!(knock(address(0)), refused(Refusal::Direction(nr(0))));
    assert_eq!(knock(address(1)), refused(Refusal::Direction(nr(1))));
    assert_eq!(knock(address(2)), refused(Refusal::NotUp(nr(2))));
    mesh.step(SECOND, Event::Up(nr(2)));
    let event = Event::Accepted {
        conn: ConnId(2),
        from: address(2),
    };
    assert!(matches!(
        mesh.step(SECOND, event)[..],
        [Action::Write(ConnId(2), _)]
    ));
    // Mute until the idle time-out.
    assert_eq!(mesh.next_timer(), Some(SECOND * 31));
    let actions = mesh.step(SECOND * 31, Event::Timer);
    let mute = Action::Refused(Refusal::Mute(nr(2)));
    assert_eq!(actions, [mute, Action::Close(ConnId(2))]);
}

#[test]
fn who_has_other_time_outs_is_not_asked_again() {
    let mut pair = Pair::new(OCELOTS);
    let mut other = MeshConfig {
        node: nr(1),
        timing: Timing::kernel(),
        peers: (0..4).map(|number| (nr(number), address(number))).collect(),
        incarnation: Some(8),
    };
    other.timing.keepalive += SECOND;
    pair.give(0, Event::Down(nr(1)));
    pair.meshes[1] = Mesh::new(other);
    pair.said(0);
    pair.said(1);
    pair.give(0, Event::Up(nr(1)));
    pair.give(1, Event::Up(nr(0)));
    let mismatch = |said: &[Action]| {
        said.iter()
            .filter(|action| matches!(action, Action::Refused(Refusal::Mismatch(..))))
            .count()
    };
    assert_eq!(mismatch(&pair.said(1)), 1);
    pair.wait(SECOND * 100);
    assert_eq!(mismatch(&pair.said(1)), 0, "not before it has started anew");
    assert_eq!(pair.meshes[1].next_timer(), None);
}

#[test]
fn junk_ends_a_connection() {
    let mut pair = Pair::new(OCELOTS);
    pair.said(0);
    let conn = ConnId(1);
    let bytes = vec![0xaa; 100];
    pair.give(0, Event::Received { conn, bytes });
    let said = pair.said(0);
    let junk = |action: &Action| matches!(action, Action::Refused(Refusal::Frame(..)));
    assert!(
        junk(&said[0]) && said.contains(&Action::Close(conn)),
        "{said:?}"
    );
    // So does a count of what was never sent.
    let mut pair = Pair::new(OCELOTS);
    pair.said(0);
    let mut message = Frame::message(500, 1, 9, Vec::new());
    message.status = 3;
    let bytes = message.encode();
    pair.give(0, Event::Received { conn, bytes });
    assert!(
        pair.said(0)
            .contains(&Action::Refused(Refusal::Session(nr(1))))
    );
}

#[test]
fn a_stopped_node_answers_every_call() {
    let mut pair = Pair::new(OCELOTS);
    pair.send(0, 1);
    pair.said(0);
    pair.give(0, Event::Stop);
    pair.send(0, 2);
    assert_eq!(
        pair.answers(0),
        [(1, Err(SendError::Stopped)), (2, Err(SendError::Stopped))]
    );
    assert_eq!(pair.meshes[0].next_timer(), None);
    let mut too_long = mesh(1, None);
    too_long.step(SECOND, Event::Up(nr(0)));
    let event = Event::Send {
        to: nr(0),
        tag: 1,
        msg_type: 1,
        key: 1,
        payload: vec![0; MAX_PAYLOAD + 1],
    };
    let result = Err(SendError::TooLong);
    let answered = Action::Answered {
        to: nr(0),
        tag: 1,
        result,
    };
    assert_eq!(too_long.step(SECOND, event), [answered]);
}
