//! Sessions: where they go, when they end.

use std::time::Duration;

use roost_proto::v1::{Code, Epoch, client_frame};
use tokio::net::TcpListener;

use super::server::{Server, options, soon};
use crate::{AttachOptions, Client, Error, Options, SendOptions, Trouble};

#[tokio::test]
async fn the_end_for_good_has_a_reason() {
    let mut server = Server::start().await;
    for (code, expected) in [
        (Code::Displaced, "another session"),
        (Code::Unauthenticated, "credentials"),
        (Code::Invalid, "INVALID"),
    ] {
        let client = server.client();
        server.accept().await.goodbye(code, &[]).await;
        let error = soon(client.ready()).await.expect_err("over");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.is_retryable());
        assert_eq!(soon(client.ended()).await, error);
        let sent = soon(client.send("bob", "x", SendOptions::default())).await;
        assert!(sent.is_err() || soon(sent.expect("a handle")).await.is_err());
    }
}

/// A server that is gone, and one that takes connections and never speaks, cost one try each.
#[tokio::test]
async fn other_servers_are_tried() {
    let mut server = Server::start().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let gone_address = gone.local_addr().expect("bound").to_string();
    drop(gone);
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mute_address = mute.local_addr().expect("bound").to_string();
    let client = Client::connect(Options {
        connect_timeout: Duration::from_millis(200),
        ..options(vec![gone_address, mute_address, server.address.to_string()])
    })
    .expect("sound options");
    let _session = server.welcome().await;
    assert_eq!(soon(client.ready()).await.as_deref(), Ok("node-1"));
    assert_eq!(client.trouble(), None);
}

#[tokio::test]
async fn a_goodbye_says_where_to_go() {
    let mut first = Server::start().await;
    let mut second = Server::start().await;
    let client = first.client();
    let session = first.welcome().await;
    soon(client.ready()).await.expect("up");
    let elsewhere = [second.address.to_string()];
    session.goodbye(Code::GoElsewhere, &elsewhere).await;
    let _session = second.welcome().await;
}

/// A connection on which nothing comes any more is given up, though it stands.
#[tokio::test]
async fn silence_is_death() {
    let mut server = Server::start().await;
    let options = Options {
        ping_after: Duration::from_millis(50),
        silence_max: Duration::from_millis(150),
        ..server.options()
    };
    let _client = Client::connect(options).expect("sound options");
    let silent = server.welcome().await;
    // Greeted again, while the first session is still held open.
    let mut second = server.accept().await;
    second.welcome(100, 0).await;
    // Answering pings keeps it.
    second.hear_nothing_for(Duration::from_millis(500)).await;
    drop(silent);
}

/// Pings are answered by the server and alive is alive, but a message has no answer for too long.
#[tokio::test]
async fn a_server_that_does_not_answer_is_left() {
    let mut server = Server::start().await;
    let options = Options {
        ping_after: Duration::from_millis(50),
        answer_timeout: Duration::from_millis(200),
        ..server.options()
    };
    let client = Client::connect(options).expect("sound options");
    let handle = client.send("bob", "x", SendOptions::default().id("a"));
    let handle = handle.await.expect("taken");
    let mut first = server.welcome().await;
    first.hear_send().await;
    soon(first.answer_pings()).await;
    let mut second = server.welcome().await;
    let send = second.hear_send().await;
    second.accept(&send, 1).await;
    assert!(soon(handle).await.expect("an answer").is_accepted());
}

#[tokio::test]
async fn trouble_says_what_stands_in_the_way() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = gone.local_addr().expect("bound").to_string();
    drop(gone);
    let client = Client::connect(options(vec![address])).expect("sound options");
    let trouble = async {
        loop {
            match client.trouble() {
                Some(trouble) => return trouble,
                None => tokio::task::yield_now().await,
            }
        }
    };
    let trouble = soon(trouble).await;
    assert!(
        matches!(&trouble, Trouble::Disconnected(why) if why.contains("refused")),
        "{trouble}"
    );
}

#[tokio::test]
async fn options_are_checked() {
    let none = Client::connect(options(Vec::new()));
    assert!(matches!(none, Err(Error::Invalid(_))));
}

/// Nothing is reachable, and closing does not wait for it.
#[tokio::test]
async fn closing_without_a_session_is_quick() {
    let client = Client::connect(options(vec!["127.0.0.1:1".to_owned()])).expect("sound options");
    let handle = client.send("bob", "x", SendOptions::default()).await;
    soon(client.close()).await;
    let result = soon(handle.expect("taken")).await;
    assert!(matches!(result, Err(Error::Closed)));
}

/// A client was displaced by its own older session, whose request to attach had been on its way for longer. Now it shows
/// each session that it is there, and all of them whose they are.
#[tokio::test]
async fn each_session_shows_that_its_client_is_there_and_whose_it_is() {
    let mut server = Server::start().await;
    let options = server.options().attach(AttachOptions::default());
    let _client = Client::connect(options).expect("sound options");
    let epoch = |counter| {
        Some(Epoch {
            term: 1,
            replica: 1,
            counter,
        })
    };
    for (counter, expected) in [(1, None), (5, epoch(1)), (7, epoch(1))] {
        let mut session = server.accept().await;
        let attach = session.hello.attach.expect("it attaches");
        assert!(attach.on_first_frame);
        assert_eq!(attach.client, expected, "that of the first session");
        session.welcome_as(100, 0, epoch(counter)).await;
        let first = session.hear_any().await;
        assert!(matches!(first, client_frame::Frame::Ping(_)), "{first:?}");
    }
}
