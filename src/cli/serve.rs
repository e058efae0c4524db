//! `kontiki serve`: settings in, a running node out.

use super::config::{LogLevel, Resolved, ServeConfig, read_token, resolve};
use super::exit::Exit;
use super::help;
use crate::env::allocator;
use crate::env::real::others_may_use;
use crate::server::logging::{Level, flush, log, set_level};
use crate::server::{ServerOptions, start};
use std::ffi::OsString;

/// Serves until the process is ended. Gives the exit code when it cannot.
pub fn serve(args: &[OsString]) -> Exit {
    let config = match resolve(args, std::env::vars_os()) {
        Ok(Resolved::Serve(config)) => config,
        Ok(Resolved::Help) => {
            print!("{}", help::help(Some("serve")).unwrap_or_default());
            return Exit::Done;
        }
        Err(e) => {
            eprintln!("kontiki serve: {e}");
            return e.exit();
        }
    };
    let options = match options_of(&config) {
        Ok(options) => options,
        Err(e) => {
            eprintln!("kontiki serve: {e}");
            return Exit::Usage;
        }
    };
    if let Err(why) = allocator::begin_anew(&help::version()) {
        set_level(options.log_level);
        let what = format_args!(
            "memory that is freed may stay with the process, the allocator could not be set: {why}"
        );
        log(Level::Debug, what);
    }
    if let Some(path) = config.token_file.as_deref().filter(|path| others_may_use(path)) {
        let path = path.display();
        let what = format_args!(
            "other users of this machine may read the token file {path}; let its owner alone: chmod 600 {path}"
        );
        log(Level::Warn, what);
    }
    match start(options) {
        Ok(listener) => {
            // The listener never ends; should it all the same, the node does not serve.
            let _ = listener.join();
            Exit::Unavailable
        }
        Err(e) => {
            flush();
            eprintln!("kontiki serve: {e}");
            Exit::Unavailable
        }
    }
}

fn options_of(config: &ServeConfig) -> Result<ServerOptions, String> {
    let token = match &config.token_file {
        Some(path) => read_token(path).map_err(|e| e.to_string())?.into_bytes(),
        None => Vec::new(),
    };
    Ok(ServerOptions {
        data: config.data.clone(),
        listen: config.listen.to_string(),
        advertise: config.advertise.to_string(),
        peers: config.peers.iter().map(ToString::to_string).collect(),
        join: config.join.iter().map(ToString::to_string).collect(),
        restore: config.restore.clone(),
        token,
        heartbeat_ms: config.heartbeat_ms,
        election_timeout_ms: config.election_timeout_ms,
        connections_max: config.max_connections,
        inflight_bytes_max: config.inflight_bytes,
        limits: config.limits,
        wal_limit_bytes: config.wal_limit_bytes,
        memtable_bytes: config.memtable_bytes,
        reserve_bytes: config.reserve_bytes,
        cache_bytes: config.cache_bytes,
        record: config.record.clone().map(|dir| (dir, config.record_bytes_max)),
        log_level: match config.log_level {
            LogLevel::Error => Level::Error,
            LogLevel::Warn => Level::Warn,
            LogLevel::Info => Level::Info,
            LogLevel::Debug => Level::Debug,
        },
    })
}
