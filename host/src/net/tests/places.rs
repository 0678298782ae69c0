//! A port whose places run out: who waits makes room.

use super::*;

/// Sixteen places, one of which is kept for newcomers.
fn sixteen() -> Net {
    Net { connections_max: 16, ..slow() }
}

/// One more, which stays.
fn newcomer(server: &Server) -> Client {
    let mut client = server.client();
    assert_eq!(client.send(GET).response().status, 200);
    client
}

#[test]
fn who_has_waited_longest_makes_room() {
    let server = Server::start(&sixteen(), echo);
    let mut silent: Vec<_> = (0..14).map(|_| server.client()).collect();
    let mut kept = newcomer(&server);
    let mut newcomers = Vec::new();
    for mut first in silent.drain(..3) {
        newcomers.push(newcomer(&server));
        assert!(first.is_closed(), "in the order of their coming");
    }
    for client in &mut silent {
        assert_eq!(client.send(GET).response().status, 200, "those that came later are there");
    }
    assert_eq!(kept.send(GET).response().status, 200);
}

#[test]
fn a_head_that_has_not_ended_is_told() {
    let server = Server::start(&sixteen(), echo);
    let mut begun: Vec<_> = (0..15).map(|_| server.client()).collect();
    for client in &mut begun {
        client.send("GET /x HTTP/1.1\r\nho");
    }
    let mut newcomers = Vec::new();
    for client in begun.iter_mut().take(2) {
        newcomers.push(newcomer(&server));
        let response = client.response();
        response.check_problem(503, "overloaded");
        assert_eq!((response.header("retry-after"), response.header("hob-executed")), (Some("1"), Some("0")));
        assert!(client.is_closed());
    }
    assert_eq!(begun[2].send("st: t\r\n\r\n").response().status, 200);
}

#[test]
fn who_has_a_request_in_hand_stays() {
    let (sender, release) = tokio::sync::watch::channel(false);
    let (begins, begun) = sync_channel(14);
    let server = Server::start(&sixteen(), move |request: Request<IncomingBody>| {
        let (mut release, begins) = (release.clone(), begins.clone());
        async move {
            if request.uri().path() == "/waits" {
                begins.send(()).unwrap();
                release.wait_for(|released| *released).await.unwrap();
            }
            echo(request).await
        }
    });
    let mut silent = server.client();
    let mut busy: Vec<_> = (0..14).map(|_| server.client()).collect();
    for client in &mut busy {
        client.send("POST /waits HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\n\r\n");
    }
    for _ in &busy {
        begun.recv().unwrap();
    }
    let _first = newcomer(&server);
    assert!(silent.is_closed(), "the only one that waits for a head");
    let mut second = newcomer(&server);
    // It has had a request since it was last looked at; and a body that is to come belongs to a request in hand.
    server.client().response().check_problem(503, "overloaded");
    assert_eq!(second.send(GET).response().status, 200);
    sender.send_replace(true);
    for client in &mut busy {
        assert_eq!(client.send("b").response().text(), "POST /waits 1");
    }
}

#[test]
fn who_reads_out_what_it_was_told_makes_room_too() {
    let found = || {
        let server = Server::start(&sixteen(), |_| async { Response::builder().status(413).body(Full::from("no")).unwrap() });
        let mut refused: Vec<_> = (0..15).map(|_| server.client()).collect();
        for client in &mut refused {
            // Refused before its end, it is read from for a while, so that the answer is not lost.
            client.send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\n");
            assert_eq!(client.response().status, 413);
        }
        // The first ones pass them over, for each has had a request.
        let newcomers: Vec<_> = (0..6).map(|_| server.client().send(GET).head().status).collect();
        assert!(newcomers.iter().all(|status| matches!(status, 413 | 503)), "{newcomers:?}");
        server.turned_away.counts().any(|(why, count)| why == "reclaimed" && count > 0)
    };
    // A slow machine may need so long that the while is over.
    assert!((0..50).any(|_| found()));
}
