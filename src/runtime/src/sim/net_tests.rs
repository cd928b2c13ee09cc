use super::*;
use crate::sim::Simulation;
use std::cell::Cell;

const PORT: u16 = 7777;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn at(last: u8) -> SocketAddr {
    SocketAddr::new(ip(last), PORT)
}

type Connection = Rc<dyn Stream>;

/// A connection from node 2 to node 1: its ends there and here.
async fn pair(net: &SimNet) -> (Connection, Connection, Rc<dyn Listener>) {
    let listener = net.node(ip(1)).listen(at(1)).await.expect("listens");
    let accept = listener.accept();
    let client = net
        .node(ip(2))
        .connect(ip(2), at(1))
        .await
        .expect("connects");
    (client, accept.await.expect("accepts"), listener)
}

fn run<T>(seed: u64, test: impl AsyncFnOnce(World, SimNet) -> T) -> T {
    let sim = Simulation::new(seed);
    let net = SimNet::new(&sim.world(), NetOptions::default());
    sim.block_on(test(sim.world(), net)).expect("ends")
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_cut_path_delays_and_loses_nothing() {
    run(3, async |world, net| {
        let (client, server, _listener) = pair(&net).await;
        net.cut(ip(1), ip(2));
        for byte in 0..10 {
            client.send(vec![byte]).await.expect("taken");
        }
        let got = Rc::new(Cell::new(0));
        let (count, reader) = (got.clone(), server.clone());
        world.spawn_named("reader", async move {
            let mut next = 0;
            while next < 10 {
                for byte in reader.receive(3).await.expect("whole") {
                    assert_eq!(byte, next);
                    next += 1;
                    count.set(next);
                }
            }
        });
        world.sleep(LONG).await;
        assert_eq!(got.get(), 0);
        net.mend(ip(1), ip(2));
        world.sleep(Duration::from_millis(10)).await;
        assert_eq!(got.get(), 10);
    });
}

#[test]
fn one_way_cuts_are_one_way() {
    run(4, async |world, net| {
        let (client, server, _listener) = pair(&net).await;
        net.cut_one_way(ip(2), ip(1));
        server.send(vec![1]).await.expect("taken");
        assert_eq!(client.receive(9).await.expect("open"), [1]);
        client.send(vec![2]).await.expect("taken");
        let mut receive = server.receive(9);
        let late = futures_util::future::select(&mut receive, world.sleep(LONG)).await;
        assert!(matches!(late, futures_util::future::Either::Right(_)));
        net.mend_all();
        assert_eq!(receive.await.expect("mended"), [2]);
    });
}

#[test]
fn a_reset_is_seen_by_both_and_loses() {
    run(5, async |_world, net| {
        let (client, server, listener) = pair(&net).await;
        client.send(vec![1]).await.expect("taken");
        let (one, other) = (client.receive(9), server.receive(9));
        net.reset(ip(1), ip(2));
        let reset = |result: Result<Vec<u8>, NetError>| result.expect_err("reset").kind;
        assert_eq!(reset(one.await), NetErrorKind::Reset);
        assert_eq!(reset(other.await), NetErrorKind::Reset);
        // And a new one can be made.
        let again = net
            .node(ip(2))
            .connect(ip(2), at(1))
            .await
            .expect("connects");
        again.send(vec![7]).await.expect("taken");
        let stream = listener.accept().await.expect("accepts");
        assert_eq!(stream.receive(9).await.expect("open"), [7]);
        assert_eq!(net.stats().resets, 1);
    });
}

#[test]
fn a_connect_over_a_cut_path_waits_and_gives_up() {
    run(6, async |world, net| {
        let _listener = net.node(ip(1)).listen(at(1)).await.expect("listens");
        net.cut(ip(1), ip(2));
        let connect = || net.node(ip(2)).connect(ip(2), at(1));
        let error = connect().await.map(|_| ()).expect_err("cut");
        assert_eq!(error.kind, NetErrorKind::Unreachable);
        assert!(world.now() >= NetOptions::default().connect_timeout);
        let late = connect();
        let healer = net.clone();
        world.call_after(Duration::from_secs(3), move || healer.mend_all());
        late.await.expect("mended in time");
    });
}

#[test]
fn a_crash_is_told_and_a_silent_machine_is_not() {
    run(7, async |world, net| {
        let (client, server, _listener) = pair(&net).await;
        net.crash(ip(1));
        let error = client.receive(9).await.expect_err("reset");
        assert_eq!(error.kind, NetErrorKind::Reset);
        let dead = server.receive(9).await.expect_err("dead");
        assert_eq!(dead.kind, NetErrorKind::Reset);
        let refused = net.node(ip(2)).connect(ip(2), at(1)).await;
        assert_eq!(
            refused.map(|_| ()).expect_err("nobody").kind,
            NetErrorKind::Refused
        );

        // The crashed node's listener is dropped late: it must not end its successor's.
        let (client, server, listener) = pair(&net).await;
        drop(_listener);
        net.power_off(ip(1));
        drop((server, listener));
        let mut receive = client.receive(9);
        let late = futures_util::future::select(&mut receive, world.sleep(LONG)).await;
        assert!(matches!(late, futures_util::future::Either::Right(_)));
        net.power_on(ip(1));
        assert_eq!(receive.await.expect_err("reset").kind, NetErrorKind::Reset);
    });
}

#[test]
fn one_seed_one_history() {
    let history = |seed| {
        let sim = Simulation::new(seed);
        let net = SimNet::new(&sim.world(), NetOptions::default());
        let sizes = sim.block_on(async {
            let (client, server, _listener) = pair(&net).await;
            let mut sizes = Vec::new();
            for _ in 0..50 {
                client.send(vec![0; 1000]).await.expect("taken");
                sizes.push(server.receive(700).await.expect("open").len());
            }
            sizes
        });
        (sizes.expect("ends"), sim.fingerprint())
    };
    assert_eq!(history(11), history(11));
    assert_ne!(history(11).0, history(12).0);
}
