//! The programs `platform` and `sasctl` as their users meet them: processes, real programs, the admin API over a socket, kills.
//! One program, since each more is built and linked for seconds, and these wait most of their time.

mod admin_access;
mod events;
mod host;
mod kills;
mod platform;
mod presets;
mod sasctl;
#[path = "../shared/mod.rs"]
mod shared;
mod workflow_kills;
