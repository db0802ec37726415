//! The agent: lines between it and its shims, and the files that it finds when it starts.

use quorate_agent::fuzzing;
use quorate_model::external::ExternalKind;

/// The first byte chooses what the rest is taken for: `r` a request to a shim, `s` a shim's state,
/// `l` how to launch a replica, `a` the cached assignment, `k` a line of a keeper, `m` meta-data of an OCF agent,
/// `p` a page of metrics of a copy;
/// `P`, `R`, `Q` and `S` what a PostgreSQL, a Redis, a RabbitMQ and an S3 service answer to a login.
///
/// # Panics
/// When what is read is another after it was written again; see [`quorate_agent::fuzzing`].
pub fn agent(data: &[u8]) -> bool {
    match data.split_first() {
        Some((b'r', line)) => fuzzing::request(line),
        Some((b's', text)) => fuzzing::state(text),
        Some((b'l', text)) => fuzzing::launch(text),
        Some((b'a', text)) => fuzzing::cache(text),
        Some((b'k', line)) => fuzzing::report(line),
        Some((b'm', text)) => fuzzing::meta_data(text),
        Some((b'p', text)) => fuzzing::page(text),
        Some((b'P', answer)) => fuzzing::login(ExternalKind::Postgres, answer),
        Some((b'R', answer)) => fuzzing::login(ExternalKind::Redis, answer),
        Some((b'Q', answer)) => fuzzing::login(ExternalKind::Rabbitmq, answer),
        Some((b'S', answer)) => fuzzing::login(ExternalKind::S3, answer),
        _ => false,
    }
}
