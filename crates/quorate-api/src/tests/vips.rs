//! Virtual addresses, as clients see them.

use super::*;

#[tokio::test]
async fn an_address_that_no_server_can_have_is_refused_before_anything_is_asked_of_the_cluster() {
    let fake = Fake::new();
    for (body, expected) in [
        (r#"{"address":"10.0.0.255/24"}"#, "422 invalid"),
        (r#"{"address":"10.0.0.9/24","interface":"a b"}"#, "422 invalid"),
        (r#"{"address":"10.0.0.9/24","holder":"n1"}"#, "400 bad-json"),
        ("{}", "400 bad-json"),
    ] {
        assert_eq!(code(&post(&fake, "/v1/vips", body).await), expected, "{body}");
    }
    let gone = send(&fake, Request::delete("/v1/vips/10.0.0.x").body(Body::empty()).unwrap()).await;
    assert_eq!(code(&(gone.status().as_u16(), text(gone).await)), "422 invalid");
    assert_eq!(parsed(get(&fake, "/v1/vips").await), json!([]));
}
