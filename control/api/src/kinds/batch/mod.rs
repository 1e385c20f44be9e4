//! batch/v1

pub mod cron_job;
mod indexes;
pub mod job;
mod job_change;
mod job_status;
mod schedule;
