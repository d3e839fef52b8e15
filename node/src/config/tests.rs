use std::path::PathBuf;

use super::*;

/// A file with this text, and the directory that keeps it.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("node.toml");
    fs::write(&path, text).expect("written");
    (dir, path)
}

fn load(text: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, Error> {
    let (_dir, path) = file(text);
    Config::load(
        Some(&path),
        environment
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned())),
        flags.iter().map(|&flag| flag.to_owned()),
    )
}

fn refused(text: &str, environment: &[(&str, &str)], flags: &[&str]) -> String {
    load(text, environment, flags)
        .expect_err("must be refused")
        .to_string()
}

#[test]
fn defaults_are_a_config() {
    let config = Config::load(None, [], []).expect("defaults");
    assert_eq!(config, Config::default());
    assert_eq!(config.listen.client.to_string(), "127.0.0.1:7400");
    assert_eq!(config.founding_nodes(), ["127.0.0.1:7500"]);
    assert_eq!(
        config.replicas(),
        1,
        "one node has one replica of each shard"
    );
}

#[test]
fn later_sources_win() {
    let text =
        "name = \"file\"\n[raft]\nheartbeat_ms = 60\nelection_min_ms = 400\nelection_max_ms = 500";
    let environment = [
        ("ROOST_RAFT__HEARTBEAT_MS", "70"),
        ("ROOST_RAFT__ELECTION_MIN_MS", "401"),
        ("ROOST__NAME", "variable"),
    ];
    let config = load(text, &environment, &["raft.heartbeat_ms=80"]).expect("valid");
    assert_eq!(config.raft.heartbeat_ms, 80, "flag");
    assert_eq!(config.raft.election_min_ms, 401, "environment");
    assert_eq!(config.raft.election_max_ms, 500, "file");
    assert_eq!(config.raft.batch_entries_max, 256, "default");
    assert_eq!(config.name, "variable");
}

#[test]
fn types_come_from_the_setting() {
    let nodes = "127.0.0.1:7500, b:7500,c:7500";
    let environment = [
        ("ROOST_CLUSTER__TOKEN", "12345"),
        ("ROOST_CLUSTER__INITIAL_NODES", nodes),
        ("ROOST__EXIT_WITH_STDIN", "true"),
        ("ROOST_LOG__FORMAT", "json"),
    ];
    let config = load("", &environment, &[]).expect("valid");
    assert_eq!(config.cluster.token.reveal(), "12345");
    assert_eq!(
        config.cluster.initial_nodes,
        ["127.0.0.1:7500", "b:7500", "c:7500"]
    );
    assert!(config.exit_with_stdin);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.replicas(), 3);
}

#[test]
fn other_variables_are_no_settings() {
    let environment = [
        ("ROOST_SERVER", "http://a"),
        ("ROOST_BIN", "/bin/roost"),
        ("ROOST_PORT_7400_TCP", "tcp://10.0.0.1:7400"),
        ("RAFT__HEARTBEAT_MS", "9"),
    ];
    assert_eq!(
        load("", &environment, &[]).expect("valid"),
        Config::default()
    );
}

#[test]
fn unknown_keys_are_named() {
    for (text, key) in [
        ("[raft]\nheart_beat = 1", "heart_beat"),
        ("[rafts]\nheartbeat_ms = 1", "rafts"),
        ("colour = 1", "colour"),
    ] {
        let error = refused(text, &[], &[]);
        assert!(
            error.contains(key) && error.contains("node.toml"),
            "{error}"
        );
        assert!(!error.contains('\n'), "one line: {error}");
    }
    let error = refused("", &[("ROOST_RAFT__HEART_BEAT", "1")], &[]);
    assert!(
        error.contains("ROOST_RAFT__HEART_BEAT") && error.contains("raft.heart_beat"),
        "{error}"
    );
    let error = refused("", &[], &["raft.x.y=1"]);
    assert!(error.contains("raft.x.y"), "{error}");
    assert!(matches!(load("", &[], &["raft"]), Err(Error::NotAPair)));
}

#[test]
fn wrong_types_are_named() {
    let error = refused("[raft]\nheartbeat_ms = \"50\"", &[], &[]);
    assert!(
        error.contains("heartbeat_ms = \"50\"") && error.contains("line 2"),
        "{error}"
    );
    let error = refused("", &[("ROOST_RAFT__HEARTBEAT_MS", "fast")], &[]);
    assert!(
        error.contains("raft.heartbeat_ms is a whole number"),
        "{error}"
    );
    let error = refused("", &[("ROOST__INSECURE", "yes")], &[]);
    assert!(error.contains("true or false"), "{error}");
    let error = refused("", &[("ROOST__RAFT", "1")], &[]);
    assert!(error.contains("section"), "{error}");
    let error = refused("", &[], &["listen.client=here"]);
    assert!(error.contains("socket address"), "{error}");
}

#[test]
fn bounds_are_checked() {
    let long_age = "[raft]\nlog_age_max_ms = 3600000";
    let two = "[cluster]\nreplication_factor = 3\ninitial_nodes = [\"127.0.0.1:7500\", \"b:1\"]";
    for (text, says) in [
        (
            "[cluster]\nshards = 33",
            "cluster.shards must be a power of two",
        ),
        (
            "[cluster]\nshards = 131072",
            "cluster.shards = 131072 is out of range",
        ),
        (
            "[cluster]\nshards = 0",
            "cluster.shards = 0 is out of range",
        ),
        (
            "[cluster]\nreplication_factor = 9",
            "cluster.replication_factor = 9 is out of range",
        ),
        (two, "cluster.replication_factor is more than"),
        (
            "[cluster]\ninitial_nodes = [\"a:1\"]",
            "does not name this node",
        ),
        (
            "[cluster]\ninitial_nodes = [\"a\"]",
            "must be a list of host:port",
        ),
        ("[raft]\nheartbeat_ms = 150", "raft.election_min_ms"),
        ("[raft]\nelection_max_ms = 200", "raft.election_max_ms"),
        (long_age, "storage.reclaim_ms"),
        (
            "[queue]\nttl_default_ms = 99999999999",
            "queue.ttl_default_ms",
        ),
        (
            "[queue]\nbody_bytes_max = 2097152",
            "queue.body_bytes_max = 2097152 is out of range",
        ),
        ("[peer]\nredial_min_ms = 5000", "peer.redial_min_ms"),
        ("name = \"\"", "name must be"),
        ("data_dir = \"\"", "data_dir is empty"),
    ] {
        let error = refused(text, &[], &[]);
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn beyond_loopback_only_when_said() {
    let open = "[listen]\nclient = \"0.0.0.0:7400\"";
    assert!(refused(open, &[], &[]).contains("insecure = true"));
    let error = refused(open, &[("ROOST__INSECURE", "true")], &[]);
    assert!(error.contains("advertise.client must be said"), "{error}");
    let config = load(
        open,
        &[],
        &["insecure=true", "advertise.client=roost.example:7400"],
    )
    .expect("valid");
    assert_eq!(config.advertised_client(), "roost.example:7400");
    assert_eq!(config.advertised_peer(), "127.0.0.1:7500");
    assert_eq!(config.insecure_listeners().len(), 1);
}

/// Whoever reaches a peer port may ask for the admin token of a cluster whose own token is empty.
#[test]
fn peers_beyond_loopback_share_a_secret() {
    let open = "insecure = true\n[listen]\npeer = \"10.0.0.1:7500\"";
    let error = refused(open, &[], &[]);
    assert!(error.contains("cluster.token is empty"), "{error}");
    load(open, &[], &["cluster.token=a secret"]).expect("valid");
    let clients = "insecure = true\n[listen]\nclient = \"10.0.0.1:7400\"";
    load(clients, &[], &[]).expect("the peer port is on loopback");
}

#[test]
fn a_dump_is_the_config() {
    let text = "[cluster]\ntoken = \"secret-word\"\nshards = 4\n[log]\nformat = \"json\"";
    let config = load(text, &[], &[]).expect("valid");
    assert_eq!(load(&config.dump(), &[], &[]).expect("a config"), config);
    assert!(
        !format!("{config:?}").contains("secret-word"),
        "no secret in debug output"
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("/nowhere/node.toml")), [], []);
    let error = error.expect_err("no file").to_string();
    assert!(error.contains("/nowhere/node.toml"), "{error}");
}
