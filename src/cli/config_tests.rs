//! Scenarios of [`super::resolve`]: who wins, who is blamed, what is refused.

use super::*;
use std::io::Write;

fn try_with(args: &[&str], variables: &[(&str, &str)]) -> Result<Resolved, ConfigError> {
    resolve(args, variables.iter().map(|(n, v)| (n.into(), v.into())))
}

fn serve_with(args: &[&str], variables: &[(&str, &str)]) -> ServeConfig {
    match try_with(args, variables) {
        Ok(Resolved::Serve(config)) => *config,
        other => panic!("{args:?} {variables:?} gave {other:?}"),
    }
}

fn serve(args: &[&str]) -> ServeConfig {
    serve_with(args, &[])
}

fn error_with(args: &[&str], variables: &[(&str, &str)]) -> String {
    match try_with(args, variables) {
        Err(error) => error.to_string(),
        Ok(config) => panic!("{args:?} {variables:?} was taken: {config:?}"),
    }
}

fn error(args: &[&str]) -> String {
    error_with(args, &[])
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("a temporary file");
    file
}

fn name(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("a path in UTF-8")
}

#[test]
fn serve_alone_is_a_cluster_of_one_on_loopback() {
    // The shortest command line there is.
    let c = serve(&[]);
    assert_eq!(c.data, PathBuf::from("./kontiki-data"));
    assert_eq!(c.listen.to_string(), "127.0.0.1:7101");
    assert_eq!(c.advertise, c.listen);
    assert_eq!(c.members(), [(1, &c.listen)]);
    assert_eq!(c.node_id(), 1);
    assert_eq!((c.log_level, c.token_file), (LogLevel::Info, None));
}

#[test]
fn flag_beats_variable_beats_file_beats_default() {
    // One setting from each source, and one that all of them set.
    let f = file("# ours\nheartbeat-ms = 11\nmax-connections= 13   # few\nlog-level =warn\n\n");
    let variables = [("KONTIKI_HEARTBEAT_MS", "12"), ("KONTIKI_LOG_LEVEL", "debug")];
    let c = serve_with(&["--config", name(&f), "--log-level=error"], &variables);
    assert_eq!(c.heartbeat_ms, 12);
    assert_eq!(c.max_connections, 13);
    assert_eq!(c.log_level, LogLevel::Error);
    assert_eq!(c.election_timeout_ms, 500);
    assert!(
        error(&["--log-level", "loud"]).ends_with("'loud' is not one of error, warn, info, debug")
    );
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    // A service manager sets variables more easily than flags; an empty one is not set at all.
    let f = file("\u{feff}data = /srv/k#1\r\n");
    let c = serve_with(&[], &[("KONTIKI_CONFIG", name(&f)), ("KONTIKI_DATA", "")]);
    assert_eq!(c.data, PathBuf::from("/srv/k#1"), "a # inside a word is no comment");
}

#[test]
fn the_defaults_of_the_table_are_those_of_the_store() {
    // The table is text for people; it must say what the code means.
    assert_eq!(serve(&[]).limits, Limits::default());
}

#[test]
fn every_setting_is_known_to_all_three_sources() {
    // The table drives them all: each setting, given its own default, is taken everywhere.
    for s in SETTINGS.iter().filter(|s| !s.default.is_empty()) {
        let plain = serve(&[]);
        assert_eq!(serve(&[&format!("--{}", s.name), s.default]), plain, "{}", s.name);
        assert_eq!(serve_with(&[], &[(&variable(s.name), s.default)]), plain, "{}", s.name);
        let f = file(&format!("{} = {}\n", s.name, s.default));
        assert_eq!(serve(&["--config", name(&f)]), plain, "{}", s.name);
    }
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest_one() {
    // A slip of the finger in each source; a name that is near nothing gets no guess.
    assert_eq!(error(&["--lisen", "x"]), "flag --lisen is unknown; did you mean --listen?");
    assert_eq!(error(&["--confg=x"]), "flag --confg is unknown; did you mean --config?");
    assert_eq!(
        error_with(&[], &[("KONTIKI_MAXVALUE", "1")]),
        "variable KONTIKI_MAXVALUE is unknown; did you mean KONTIKI_MAX_VALUE?"
    );
    let f = file("\n\ntoken_file = x\n");
    assert_eq!(
        error(&["--config", name(&f)]),
        format!("line 3 of {}: token_file is unknown; did you mean token-file?", name(&f))
    );
    assert_eq!(error(&["-q"]), "flag -q is unknown; see kontiki help serve");
}

#[test]
fn variables_of_the_scripts_and_of_others_are_left_alone() {
    // The cluster script's own variables reach the nodes it starts.
    let others = [("KONTIKI_PORT", "1"), ("KONTIKI_DIR", "x"), ("KONTIKI_BIN", "y"), ("PATH", "z")];
    assert_eq!(serve_with(&[], &others), serve(&[]));
}

#[test]
fn a_wrong_value_blames_its_source() {
    // The same wrong size in three places.
    let why = "'64Kb' is not a size such as 4096, 64KiB, 256MiB or 2GiB";
    assert_eq!(error(&["--max-value", "64Kb"]), format!("flag --max-value: {why}"));
    assert_eq!(
        error_with(&[], &[("KONTIKI_MAX_VALUE", "64Kb")]),
        format!("variable KONTIKI_MAX_VALUE: {why}")
    );
    let f = file("max-value = 64Kb");
    assert_eq!(error(&["--config", name(&f)]), format!("line 1 of {}: {why}", name(&f)));
}

#[test]
fn malformed_command_lines_and_files_are_refused() {
    // Each with the one line a person needs.
    assert_eq!(error(&["--data"]), "flag --data: its value is missing");
    assert_eq!(error(&["--data", "a", "--data", "b"]), "flag --data: is given twice");
    assert!(error(&["now"]).starts_with("serve takes flags only, not 'now'"));
    for (text, part) in [
        ("data", "'data' is not of the form name = value"),
        ("data =", "the value of data is missing"),
        ("data = a\ndata = b", "data was set before, in line 1"),
        ("config = x", "cannot name another one"),
    ] {
        let f = file(text);
        let error = error(&["--config", name(&f)]);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_its_cause_kept() {
    // Absent, too long, and not text.
    use std::error::Error;
    let absent = try_with(&["--config", "/nonexistent/kontiki.conf"], &[]).unwrap_err();
    assert!(absent.to_string().starts_with("cannot read /nonexistent/kontiki.conf: "));
    assert!(absent.source().is_some());
    assert_eq!(absent.exit(), Exit::Usage);
    let long = file(&"#".repeat(70_000));
    assert!(error(&["--config", name(&long)]).contains("longer than"));
    let mut binary = file("");
    binary.write_all(b"\xff\xfe").expect("a temporary file");
    assert!(error(&["--config", name(&binary)]).contains("UTF-8"));
}

#[test]
fn help_is_asked_for_before_anything_is_checked() {
    // Somebody who asks how to write it has not written it yet.
    assert_eq!(try_with(&["--help", "--max-value", "?"], &[]).ok(), Some(Resolved::Help));
    assert_eq!(try_with(&["-h"], &[]).ok(), Some(Resolved::Help));
}

#[test]
fn ids_follow_host_and_numeric_port_whatever_the_order() {
    // 9000 comes before 10000 although the text does not; every node must count alike.
    let listen = ["--listen", "127.0.0.1:10000", "--peers"];
    let orders = [
        "127.0.0.1:10000,127.0.0.1:9000,127.0.0.1:9001",
        "127.0.0.1:9001, 127.0.0.1:10000,127.0.0.1:9000",
    ];
    for order in orders {
        let c = serve(&[listen.as_slice(), &[order]].concat());
        let ids: Vec<(u64, u16)> = c.members().into_iter().map(|(id, a)| (id, a.port)).collect();
        assert_eq!(ids, [(1, 9000), (2, 9001), (3, 10000)]);
        assert_eq!(c.node_id(), 3);
    }
}

#[test]
fn peers_must_be_distinct_and_hold_this_node() {
    // Two equal members would be one vote counted twice.
    let twice = error(&["--peers", "127.0.0.1:7101,LOCALHOST:1,localhost:1"]);
    assert_eq!(twice, "flag --peers: localhost:1 is named twice");
    let foreign = error(&["--peers", "127.0.0.1:1,127.0.0.1:2"]);
    assert!(foreign.contains("own address 127.0.0.1:7101 is not among 127.0.0.1:1,127.0.0.1:2"));
    assert!(error(&["--peers", "127.0.0.1:7101,"]).contains("HOST:PORT"));
    let many: Vec<String> = (1..=PEERS_MAX + 1).map(|p| format!("h:{p}")).collect();
    assert!(error(&["--peers", &many.join(",")]).contains("more than"));
}

#[test]
fn beyond_loopback_a_token_is_required() {
    // An open store on a network is an accident; names may lead anywhere.
    for open in ["0.0.0.0:7101", "10.0.0.1:7101", "db.example:7101", "[::]:7101"] {
        assert!(error(&["--listen", open, "--advertise", "a:1"]).contains("needs --token-file"));
    }
    for closed in ["127.0.0.2:1", "[::1]:7101", "localhost:7101"] {
        assert!(serve(&["--listen", closed]).listen.is_loopback());
    }
    let c = serve(&["--listen", "10.0.0.1:7101", "--token-file", "t"]);
    assert_eq!(c.token_file, Some(PathBuf::from("t")));
}

#[test]
fn an_address_for_everybody_cannot_be_advertised() {
    // Peers would try to connect to 0.0.0.0, which is each machine itself.
    let all = ["--listen", "0.0.0.0:7101", "--token-file", "t"];
    assert!(error(&all).contains("name an address with --advertise"));
    let c = serve(&[all.as_slice(), &["--advertise", "db1.example:7101"]].concat());
    assert_eq!(c.advertise.to_string(), "db1.example:7101");
}

#[test]
fn settings_that_contradict_one_another_are_refused() {
    // The one that was set is blamed, not the default beside it.
    let why = "the heartbeat (100 ms) must be less than half of the election timeout (200 ms)";
    assert_eq!(
        error(&["--election-timeout-ms", "200"]),
        format!("flag --election-timeout-ms: {why}")
    );
    assert_eq!(serve(&["--election-timeout-ms", "201"]).election_timeout_ms, 201);
    let value = error(&["--max-value", "4MiB"]);
    assert!(value.starts_with("flag --max-value: --max-batch of 4194304 bytes cannot hold"));
    assert_eq!(serve(&["--max-value", "3MiB"]).limits.max_value_bytes, 3 << 20);
    assert!(error(&["--inflight-bytes", "1MiB"]).contains("must not exceed inflight-bytes"));
    assert!(error(&["--max-batch", "16MiB"]).contains("is not from 1024 to"));
}

#[test]
fn addresses_are_read_and_written_alike() {
    // What is printed parses to the same; what is none is refused.
    for (text, shown) in [
        ("DB.Example:1", "db.example:1"),
        ("[::1]:65535", "[::1]:65535"),
        ("[0:0::1]:7", "[::1]:7"),
        ("1.2.3.4:80", "1.2.3.4:80"),
    ] {
        let address: Address = text.parse().expect(text);
        assert_eq!(address.to_string(), shown);
        assert_eq!(shown.parse(), Ok(address));
    }
    let wrong =
        ["", "a", ":1", "a:", "a:0", "a:65536", "a:+1", "::1:7101", "[x]:1", "a b:1", "a,b:1"];
    for text in wrong {
        assert!(text.parse::<Address>().is_err(), "{text}");
    }
}

#[test]
fn numbers_and_sizes_are_exact_or_refused() {
    // No sign, no fraction, no overflow, no unit that means two things.
    assert_eq!(parse_size("64KiB"), Ok(65_536));
    assert_eq!(parse_size("256 MiB"), Ok(256 << 20));
    assert_eq!(parse_size("7"), Ok(7));
    assert_eq!(parse_size("2GiB"), Ok(2 << 30));
    for text in [
        "",
        "KiB",
        "1K",
        "1kB",
        "1.5MiB",
        "-1",
        "+1",
        "99999999999999999999",
        "18446744073709551615KiB",
    ] {
        assert!(parse_size(text).is_err(), "{text}");
    }
    assert_eq!(parse_integer("60000", 1, TIMEOUT_MS_MAX), Ok(60_000));
    for text in ["", "0", "60001", "+5", "5ms", " 5"] {
        assert!(parse_integer(text, 1, TIMEOUT_MS_MAX).is_err(), "{text}");
    }
    assert!(error(&["--max-value", "10"]).contains("not from 1024 to"));
}

#[test]
fn a_token_is_one_line_of_text() {
    // An editor's line end does not count; an empty file is no protection. During a change there are two.
    assert_eq!(read_token(file("s3cret\n").path()).ok().as_deref(), Some("s3cret"));
    assert_eq!(read_token(file("new\r\n\nold\n").path()).ok().as_deref(), Some("new\nold"));
    for text in ["", " \n", "a\tb", "a\nb\nc", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
        assert!(read_token(file(text).path()).is_err(), "{text:?}");
    }
    assert!(read_token(Path::new("/nonexistent/token")).is_err());
}
