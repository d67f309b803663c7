//! The steps that ask the guest, turn the VM off, and read and delete it while it is off.

use std::time::Duration;

use anyhow::anyhow;
use futures::future::try_join_all;
use hypervisor::{Consistency, Hypervisor as _, PowerState, Quiescence, Stop as Off};

use super::guest::SIZES;
use super::ledger::{Figures, Problem};
use super::steps::{Done, Run, equal, soft};
use super::witness::hash;

/// How long a guest that does not listen is asked to shut down.
const SHUT_DOWN: Duration = Duration::from_secs(3);

impl Run<'_> {
    pub(super) async fn application(&mut self) -> Done {
        let frozen = self.frozen(None, Consistency::Application).await;
        let released = match frozen {
            Ok(point) => {
                let said = point.quiescence.clone();
                self.driver.release(point).await.map(|()| said)
            }
            Err(error) => Err(error),
        };
        let judged = async {
            match released? {
                Quiescence::NotConfirmed { reason, .. } => {
                    let mut figures = Figures::default();
                    figures.add("reason", format!("{reason:?}"));
                    Ok(((), figures))
                }
                other => Err(Problem::wrong(format!("{other:?} of a guest that can't"))),
            }
        };
        self.ledger.prove(&["application-honest"], judged).await
    }

    pub(super) async fn shut_down(&mut self) -> Done {
        let (driver, vm) = (self.driver.clone(), self.vm());
        let asked = async {
            let refused = match driver.shut_down(vm, SHUT_DOWN).await {
                Ok(()) => return Err(Problem::wrong("it is told to be off")),
                Err(error) => error,
            };
            let mut figures = Figures::default();
            figures.add("told", format!("{:?}", refused.kind()));
            driver.clean_up(vm).await?;
            match driver.power_state(vm).await? {
                PowerState::Running => Ok(((), figures)),
                PowerState::Off => Err(Problem::wrong(
                    "it is off, although the driver said otherwise",
                )),
            }
        };
        let done = self.ledger.prove(&["shut-down-honest"], asked).await;
        if done.is_err() {
            // The steps after this one want it running.
            self.driver.start(self.vm()).await.ok();
        }
        done
    }

    pub(super) async fn power_off(&mut self) -> Done {
        let (driver, vm) = (self.driver.clone(), self.vm());
        let off = async {
            driver.stop(vm, Off::TurnOff).await?;
            match driver.power_state(vm).await? {
                PowerState::Off => Ok(((), Figures::default())),
                PowerState::Running => Err(Problem::wrong("it runs")),
            }
        };
        self.ledger
            .prove(&["hyperv-turn-off", "turn-off"], off)
            .await
    }

    pub(super) async fn freeze_off(&mut self) -> Done {
        let next = self.next();
        let (driver, vm, disks) = (self.driver.clone(), self.vm(), self.disks);
        let images = self.images("source");
        let frozen = async {
            let point = driver.freeze_off(vm, &disks, None, next).await?;
            let hashes = try_join_all(point.disks.iter().map(hash)).await;
            driver.release(point).await?;
            let mut figures = Figures::default();
            figures.add("bytes", SIZES.iter().sum::<u64>());
            Ok((hashes?, figures))
        };
        let ids = ["hyperv-reference-point-off", "freeze-off"];
        let hashes = self.ledger.prove(&ids, frozen).await?;
        let ours = async {
            let read = tokio::task::spawn_blocking(move || {
                images
                    .iter()
                    .map(|file| super::protect::hash_of_file(file))
                    .collect()
            });
            let own: anyhow::Result<Vec<blake3::Hash>> =
                read.await.map_err(|error| anyhow!(error))?;
            equal(&hashes, &own?, "the image file holds other bytes")
        };
        soft(self.ledger.prove(&["freeze-off-equal"], ours).await)
    }

    pub(super) async fn remove(&mut self) -> Done {
        let (driver, vm) = (self.driver.clone(), self.vm());
        let folder = self.folder.join("vms/source");
        // Of a VM that is off, whatever the steps before came to.
        driver.stop(vm, Off::TurnOff).await.ok();
        if let Err(error) = driver.forget_all(vm).await {
            tracing::warn!(?error, "tracking is left to the deletion");
        }
        let gone = async {
            driver.remove(vm).await?;
            driver.remove(vm).await?;
            let all = driver.virtual_machines().await?;
            if all.iter().any(|one| one.id == vm) || folder.exists() {
                return Err(Problem::wrong("something of it is left"));
            }
            Ok(((), Figures::default()))
        };
        self.ledger.prove(&["hyperv-destroy", "remove"], gone).await
    }
}
