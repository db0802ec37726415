//! SQL over HTTP: the native way, and that of rqlite's clients.

use super::*;
use quorate_model::fence::FenceRefused;

fn people() -> Rows {
    let value = |scalar| Value { scalar };
    Rows {
        columns: vec!["id".into(), "<x>".into(), "ok".into()],
        types: vec!["integer".into(), String::new(), "boolean".into()],
        rows: vec![
            Row {
                values: vec![
                    Scalar::Integer(1).into(),
                    Scalar::Blob(Bytes::from_static(b"hi")).into(),
                    Scalar::Integer(1).into(),
                ],
            },
            Row { values: vec![value(None), Scalar::Real(2.0).into(), value(None)] },
        ],
    }
}

#[tokio::test]
async fn native_writes_carry_their_statements_and_answer_each() {
    let fake = Fake::new();
    fake.set(|state| {
        state.sql = Some(SqlOutcome {
            results: vec![
                StatementResult { rows_affected: 2, last_insert_id: 5, ..StatementResult::default() },
                StatementResult { rows: Some(people()), ..StatementResult::default() },
                StatementResult {
                    error: Some(SqlError { code: 1, message: "no such table: \"t\"".into() }),
                    ..StatementResult::default()
                },
            ],
            refused: None,
        });
    });
    let body = r#"{"statements":[{"sql":"A","params":[1,null,"x",{"base64":"aGk="}]},{"sql":"B","params":{":n":true}}],
        "transaction":true,"timeout_ms":50}"#;
    let (status, answer) = post(&fake, "/v1/db/exec", body).await;
    assert_eq!(status, 200);
    expect![[r#"{"results":[{"rows_affected":2,"last_insert_id":5},{"rows_affected":0,"last_insert_id":0,"columns":["id","<x>","ok"],"types":["integer","","boolean"],"rows":[[1,{"base64":"aGk="},1],[null,2.0,null]]},{"error":{"code":1,"message":"no such table: \"t\""}}],"index":1}"#]].assert_eq(&answer);
    let (proposal, patience) = fake.set(|state| state.proposals.remove(0));
    assert_eq!(patience, Duration::from_millis(50));
    let batch = batch(&proposal);
    assert!(batch.transaction && proposal.kind == Kind::Sql);
    assert_eq!(batch.statements[0].positional[3], Scalar::Blob(Bytes::from_static(b"hi")).into());
    assert_eq!(batch.statements[1].named[0].name, "n");
}

#[tokio::test]
async fn native_requests_that_make_no_sense_are_refused() {
    let fake = Fake::new();
    let many = format!(r#"{{"statements":[{}]}}"#, vec![r#"{"sql":"A"}"#; 1_001].join(","));
    let cases: [(&str, &str); 9] = [
        ("{", "400 bad-json"),
        ("{}", "400 no-statements"),
        (r#"{"statements":[]}"#, "400 no-statements"),
        (r#"{"sql":"A","statements":[]}"#, "400 bad-json"),
        (r#"{"sql":"A","parms":[]}"#, "400 bad-json"),
        (r#"{"sql":"A","timeout_ms":9}"#, "400 bad-timeout"),
        (r#"{"sql":"A","timeout_ms":60001}"#, "400 bad-timeout"),
        (r#"{"sql":"A","database":"system"}"#, "403 read-only-database"),
        (&many, "413 too-many-statements"),
    ];
    for (body, expected) in cases {
        assert_eq!(code(&post(&fake, "/v1/db/exec", body.to_owned()).await), expected);
    }
    for (error, expected) in [
        (WriteError::Overloaded, "503 overloaded"),
        (WriteError::Unknown { waited: Duration::from_secs(1) }, "504 outcome-unknown"),
    ] {
        fake.set(|state| state.refuse_write = Some(error));
        assert_eq!(code(&post(&fake, "/v1/db/exec", r#"{"sql":"A"}"#).await), expected);
    }
    assert!(fake.set(|state| state.proposals.is_empty()));
}

#[tokio::test]
async fn native_queries_answer_rows_and_their_age() {
    let fake = Fake::new();
    fake.set(|state| state.rows = Some(Ok(people())));
    let (status, answer) =
        post(&fake, "/v1/db/query", r#"{"sql":"Q","database":"system","consistency":"local"}"#).await;
    assert_eq!(status, 200);
    expect![[r#"{"results":[{"columns":["id","<x>","ok"],"types":["integer","","boolean"],"rows":[[1,{"base64":"aGk="},1],[null,2.0,null]]}],"applied":7,"age_ms":3}"#]].assert_eq(&answer);
    let query = fake.set(|state| state.queries.remove(0));
    assert_eq!((query.consistency, query.database.name()), (Consistency::Local, "system"));

    assert_eq!(get(&fake, "/v1/db/query?sql=SELECT%201&consistency=linearizable").await, (200, answer));
    assert_eq!(fake.set(|state| state.queries.remove(0)).batch.statements[0].sql, "SELECT 1");
    assert_eq!(code(&get(&fake, "/v1/db/query").await), "400 bad-query");
    fake.set(|state| state.refuse_read = Some(ReadError::NoLeader { waited: Duration::from_secs(1) }));
    assert_eq!(code(&get(&fake, "/v1/db/query?sql=Q").await), "503 no-leader");
}

#[tokio::test]
async fn rqlite_clients_get_the_bytes_they_know() {
    let fake = Fake::new();
    let ok = |text: &str| (200, text.to_owned());
    let insert = r#"["INSERT INTO t VALUES(1)", ["INSERT INTO t VALUES(?)", 2]]"#;
    let one = r#"{"last_insert_id":1,"rows_affected":1}"#;
    assert_eq!(post(&fake, "/db/execute", insert).await, ok(&format!(r#"{{"results":[{one},{one}]}}"#)));
    assert!(!batch(&fake.set(|state| state.proposals.remove(0)).0).transaction);

    fake.set(|state| {
        state.sql = Some(SqlOutcome {
            results: vec![
                StatementResult::default(),
                StatementResult { rows_affected: 2, ..StatementResult::default() },
                StatementResult {
                    error: Some(SqlError { code: 1, message: "near \"<\": syntax error".into() }),
                    ..StatementResult::default()
                },
            ],
            refused: None,
        });
    });
    assert_eq!(
        post(&fake, "/db/execute?transaction&timeout=5s", r#"["A"]"#).await,
        ok(r#"{"results":[{},{"rows_affected":2},{"error":"near \"\u003c\": syntax error"}]}"#)
    );
    let (proposal, patience) = fake.set(|state| state.proposals.remove(0));
    assert!(batch(&proposal).transaction && patience == Duration::from_secs(5));

    fake.set(|state| state.rows = Some(Ok(people())));
    let rows = r#"{"results":[{"columns":["id","\u003cx\u003e","ok"],"types":["integer","blob","boolean"],"values":[[1,"aGk=",true],[null,2,null]]}]}"#;
    assert_eq!(post(&fake, "/db/query?level=none", r#"["SELECT 1"]"#).await, ok(rows));
    assert_eq!(get(&fake, "/db/query?q=SELECT%201").await, ok(rows));
    let levels = fake.set(|state| state.queries.iter().map(|query| query.consistency).collect::<Vec<_>>());
    assert_eq!(levels, [Consistency::Local, Consistency::Linearizable]);
    fake.set(|state| state.rows = Some(Ok(Rows { rows: vec![], ..people() })));
    assert_eq!(
        get(&fake, "/db/query?q=A").await,
        ok(r#"{"results":[{"columns":["id","\u003cx\u003e","ok"],"types":["integer","","boolean"]}]}"#)
    );
    fake.set(|state| state.rows = Some(Err(SqlError { code: 1, message: "no such table: t".into() })));
    assert_eq!(get(&fake, "/db/query?q=A").await, ok(r#"{"results":[{"error":"no such table: t"}]}"#));
}

#[tokio::test]
async fn rqlite_clients_get_the_refusals_they_know() {
    let fake = Fake::new();
    for (body, expected) in [
        ("", "no statements"),
        ("[]", "no statements"),
        ("[", "invalid JSON body"),
        ("{}", "invalid request"),
        ("[1]", "invalid request"),
        ("[[]]", "invalid request"),
        (r#"[["SELECT ?", [300]]]"#, "unsupported type"),
    ] {
        assert_eq!(post(&fake, "/db/execute", body).await, (400, expected.to_owned()), "{body}");
    }
    assert_eq!(get(&fake, "/db/query?q=").await, (400, "query parameter not set".into()));
    assert_eq!(get(&fake, "/db/query?q=A&timeout=1").await, (400, "timeout is not a valid duration".into()));
    fake.set(|state| state.refuse_read = Some(ReadError::NoLeader { waited: Duration::from_secs(1) }));
    assert_eq!(get(&fake, "/db/query?q=A").await, (503, "leader not found".into()));
}

async fn fenced(fake: &Fake, path: &str, fences: &[&str]) -> (u16, String) {
    let mut request = Request::post(path);
    for fence in fences {
        request = request.header("Quorate-Fence", *fence);
    }
    let body = if path == "/db/execute" { r#"["A"]"# } else { r#"{"sql":"A"}"# };
    let response = send(fake, request.body(Body::from(body)).unwrap()).await;
    (response.status().as_u16(), text(response).await)
}

#[tokio::test]
async fn n2_writes_carry_their_fence_and_are_told_when_its_epoch_is_over() {
    let fake = Fake::new();
    for path in ["/v1/db/exec", "/db/execute"] {
        assert_eq!(fenced(&fake, path, &["db@4"]).await.0, 200);
        let (proposal, _) = fake.set(|state| state.proposals.remove(0));
        assert_eq!(proposal.fence.unwrap().to_string(), "db@4");
    }
    let refuse = |epoch, newest| {
        let refused = Some(FenceRefused { service: "db".into(), epoch, newest });
        fake.set(|state| state.sql = Some(SqlOutcome { results: Vec::new(), refused }));
    };
    refuse(3, 4);
    let stale = fenced(&fake, "/v1/db/exec", &["db@3"]).await;
    assert_eq!(code(&stale), "409 stale-epoch");
    expect![[r#"{"code":"stale-epoch","message":"epoch 3 of `db` is over: the newest is 4","fix":"nothing was written: stop, another copy of `db` has taken over","details":{"epoch":3,"newest":4,"service":"db"}}"#]].assert_eq(&stale.1);
    let stale = fenced(&fake, "/db/execute", &["db@3"]).await;
    assert_eq!(stale, (409, "epoch 3 of `db` is over: the newest is 4".to_owned()));
    refuse(9, 4);
    assert_eq!(code(&fenced(&fake, "/v1/db/exec", &["db@9"]).await), "409 unknown-epoch");
}

#[tokio::test]
async fn what_is_no_fence_is_refused_before_anything_is_written() {
    let fake = Fake::new();
    for bad in [&["db"][..], &[""], &["db@0"], &["db@x"], &["D B@1"], &["db@1", "db@1"], &["db@1,db@2"]] {
        let refused = fenced(&fake, "/v1/db/exec", bad).await;
        assert_eq!(code(&refused), "400 bad-fence", "{bad:?}");
        assert_eq!(fenced(&fake, "/db/execute", bad).await.0, 400, "{bad:?}");
    }
    assert!(fake.set(|state| state.proposals.is_empty()));
}
