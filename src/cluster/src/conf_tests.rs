use super::*;
use proptest::prelude::*;

/// What `o2cb add-cluster`, `add-node` and `add-heartbeat` wrote.
const TOOLS: &str = include_str!("../tests/data/webcluster.conf");

#[test]
fn what_the_tools_wrote_is_read_and_written_again() {
    let conf = ClusterConf::parse(TOOLS).unwrap();
    assert_eq!(conf.to_string(), TOOLS);
    assert!(conf.ignored.is_empty());
    let web = conf.cluster("webcluster").unwrap();
    assert_eq!(web.mode, HeartbeatMode::Global);
    assert_eq!(web.regions.len(), 2);
    let node = web.node_named("node6").unwrap();
    assert_eq!(node.number.get(), 6);
    assert_eq!(node.address.to_string(), "192.168.0.106:7000");
    assert_eq!(web.node(NodeNr::new(10).unwrap()).unwrap().name, "node10");
    let other = conf.cluster("b2").unwrap();
    assert_eq!((other.mode, other.nodes.len()), (HeartbeatMode::Local, 1));
}

const GOOD: &str = "\
cluster:
\tname = web
\tnode_count = 2

node:
\tcluster = web
\tnumber = 0
\tip_port = 7777
\tip_address = 10.0.0.1
\tname = alpha

node:
\tcluster = web
\tnumber = 1
\tip_port = 7777
\tip_address = 10.0.0.2
\tname = beta
";

/// The error that the file has with `from` replaced by `to` once.
fn broken(from: &str, to: &str) -> (usize, String, ConfWhy) {
    assert!(GOOD.contains(from), "{from}");
    let error = ClusterConf::parse(&GOOD.replacen(from, to, 1)).expect_err(to);
    assert!(
        error
            .to_string()
            .starts_with(&format!("line {}: ", error.line))
    );
    (error.line, error.field, error.why)
}

#[test]
fn errors_name_line_and_field() {
    ClusterConf::parse(GOOD).unwrap();
    let value = |line, field: &str, value: &str, what| {
        (line, field.into(), ConfWhy::Value(value.into(), what))
    };
    let number = "a number from 0 to 254";
    assert_eq!(
        broken("number = 1", "number = 255"),
        value(14, "number", "255", number)
    );
    assert_eq!(
        broken("number = 1", "number = -1"),
        value(14, "number", "-1", number)
    );
    assert_eq!(
        broken("number = 1", "number = +1"),
        value(14, "number", "+1", number)
    );
    assert_eq!(
        broken("number = 1", "number ="),
        value(14, "number", "", number)
    );
    let port = "a port from 1 to 65535";
    assert_eq!(
        broken("ip_port = 7777", "ip_port = 0"),
        value(8, "ip_port", "0", port)
    );
    assert_eq!(
        broken("ip_port = 7777", "ip_port = 65536"),
        value(8, "ip_port", "65536", port)
    );
    let ip = "an IPv4 address";
    assert_eq!(
        broken("10.0.0.1", "10.0.0"),
        value(9, "ip_address", "10.0.0", ip)
    );
    let name = "1 to 16 letters and digits";
    assert_eq!(
        broken("name = web", "name = we-b"),
        value(2, "name", "we-b", name)
    );
    let long = "abcdefghijklmnopq";
    assert_eq!(
        broken("name = web", &format!("name = {long}")),
        value(2, "name", long, name)
    );
    let host = "a host name of 1 to 63 bytes";
    assert_eq!(
        broken("name = beta", "name = be ta"),
        value(17, "name", "be ta", host)
    );
    assert_eq!(
        broken("node_count = 2", "node_count = two"),
        value(3, "node_count", "two", "a number of nodes")
    );
    assert_eq!(
        broken("\tnode_count = 2", "\theartbeat_mode = some"),
        value(3, "heartbeat_mode", "some", "`local` or `global`")
    );

    let taken =
        |line, field: &str, what: &str, by| (line, field.into(), ConfWhy::Taken(what.into(), by));
    assert_eq!(
        broken("number = 1", "number = 0"),
        taken(14, "number", "0", 7)
    );
    assert_eq!(
        broken("10.0.0.2", "10.0.0.1"),
        taken(16, "ip_address", "10.0.0.1", 9)
    );
    assert_eq!(
        broken("name = beta", "name = alpha"),
        taken(17, "name", "alpha", 10)
    );

    assert_eq!(
        broken("\tname = beta\n", ""),
        (12, "name".into(), ConfWhy::Missing)
    );
    assert_eq!(
        broken("\tname = web\n", ""),
        (1, "name".into(), ConfWhy::Missing)
    );
    assert_eq!(
        broken("\tnumber = 0\n", "\tnumber = 0\n\tnumber = 3\n"),
        (8, "number".into(), ConfWhy::Repeated)
    );
    assert_eq!(
        broken("cluster:", "cluster"),
        (1, "cluster".into(), ConfWhy::Syntax)
    );
    assert_eq!(
        broken("\tnumber = 1", "\tnumber 1"),
        (14, "number 1".into(), ConfWhy::Syntax)
    );
    assert_eq!(
        broken("cluster:\n", "# nothing\n"),
        (2, "name".into(), ConfWhy::Homeless)
    );
    assert_eq!(
        broken("cluster = web", "cluster = other"),
        (6, "cluster".into(), ConfWhy::NoSuchCluster("other".into()))
    );
}

#[test]
fn regions_are_uuids_and_at_most_32() {
    let region = |index: usize| format!("heartbeat:\n\tcluster = web\n\tregion = {index:032X}\n\n");
    let mut text = GOOD.to_string();
    (0..32).for_each(|index| text += &region(index));
    let conf = ClusterConf::parse(&text).unwrap();
    assert_eq!(
        conf.clusters[0].regions[31].to_string(),
        format!("{:032X}", 31)
    );
    let error = ClusterConf::parse(&(text.clone() + &region(32))).unwrap_err();
    assert_eq!(error.why, ConfWhy::TooMany(32));
    let error = ClusterConf::parse(&text.replace("000A", "000a")).unwrap_err();
    assert!(matches!(error.why, ConfWhy::Value(..)), "{error}");
}

#[test]
fn what_the_tools_do_not_know_is_ignored_and_told() {
    let text = GOOD.replace("\tnode_count = 2\n", "\tnode_count = 2\n\tcolour = red\n")
        + "\n# more\nweather:\n  wind = 3\n";
    let conf = ClusterConf::parse(&text).unwrap();
    assert_eq!(
        conf.ignored,
        [(4, "colour".to_string()), (21, "weather:".to_string())]
    );
    let spaced = GOOD
        .replace('\t', "   ")
        .replace(" = ", "=")
        .replace('\n', "\r\n");
    assert_eq!(ClusterConf::parse(&spaced).unwrap().clusters, conf.clusters);
}

fn any_cluster(name: String) -> impl Strategy<Value = ClusterDef> {
    let numbers = proptest::collection::btree_set(0u8..255, 0..20);
    let regions = proptest::collection::btree_set(any::<u128>(), 0..5);
    (any::<bool>(), numbers, regions, 1u16..).prop_map(move |(global, numbers, regions, port)| {
        let node = |number: u8| NodeDef {
            number: NodeNr::new(number).unwrap(),
            name: format!("host-{number}"),
            address: SocketAddrV4::new(Ipv4Addr::new(10, 1, 2, number), port),
        };
        let region = |uuid: &u128| RegionName::new(&format!("{uuid:032X}")).unwrap();
        ClusterDef {
            name: name.clone(),
            mode: [HeartbeatMode::Local, HeartbeatMode::Global][usize::from(global)],
            nodes: numbers.into_iter().map(node).collect(),
            regions: regions.iter().map(region).collect(),
        }
    })
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_again(one in any_cluster("one".into()), two in any_cluster("TWO2".into())) {
        let conf = ClusterConf { clusters: vec![one, two], ignored: Vec::new() };
        prop_assert_eq!(ClusterConf::parse(&conf.to_string()).unwrap(), conf);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(cluster:|node:|heartbeat:|\\tname = |\\tnumber = [0-9]{1,4}|\\tcluster = a|=|:|#|[ -~]|\\n|\\PC){0,60}") {
        let _ = ClusterConf::parse(&text);
    }
}
