//! Orders and what is said of them, between their messages and `protection`'s own types.
//!
//! A message that names a kind this release doesn't know is `None`: nobody may guess what may run.

use protection::Generation;
use protection::life::{RecoveryOrder, RecoverySaid, SourceOrder, SourceSaid};

use crate::v1;

/// The message for an order that is in force under this number.
#[must_use]
pub fn source_message(epoch: Generation, order: SourceOrder) -> v1::SourceOrder {
    use v1::source_order::Kind;
    let (kind, licence) = match order {
        SourceOrder::Replicate(licence) => (Kind::Replicate, licence.0),
        SourceOrder::Run(licence) => (Kind::Run, licence.0),
        SourceOrder::ShipRest(licence) => (Kind::ShipRest, licence.0),
        SourceOrder::Hold => (Kind::Hold, 0),
        SourceOrder::Receive => (Kind::Receive, 0),
        SourceOrder::ReceiveRest => (Kind::ReceiveRest, 0),
        SourceOrder::LeaveRunning => (Kind::LeaveRunning, 0),
        SourceOrder::LeaveOff => (Kind::LeaveOff, 0),
    };
    v1::SourceOrder {
        epoch: epoch.0,
        kind: kind.into(),
        licence,
    }
}

/// What a message orders, and under which number.
#[must_use]
pub fn source_order(message: &v1::SourceOrder) -> Option<(Generation, SourceOrder)> {
    use v1::source_order::Kind;
    let licence = Generation(message.licence);
    let order = match message.kind() {
        Kind::Unspecified => return None,
        Kind::Replicate => SourceOrder::Replicate(licence),
        Kind::Run => SourceOrder::Run(licence),
        Kind::ShipRest => SourceOrder::ShipRest(licence),
        Kind::Hold => SourceOrder::Hold,
        Kind::Receive => SourceOrder::Receive,
        Kind::ReceiveRest => SourceOrder::ReceiveRest,
        Kind::LeaveRunning => SourceOrder::LeaveRunning,
        Kind::LeaveOff => SourceOrder::LeaveOff,
    };
    Some((Generation(message.epoch), order))
}

/// The message for an order that is in force under this number.
#[must_use]
pub fn recovery_message(epoch: Generation, order: RecoveryOrder) -> v1::RecoveryOrder {
    use v1::recovery_order::Kind;
    let (kind, instance, takes) = match order {
        RecoveryOrder::Absent => (Kind::Absent, 0, 0),
        RecoveryOrder::Run { instance, takes } => (Kind::Run, instance.0, takes.0),
        RecoveryOrder::Stop => (Kind::Stop, 0, 0),
        RecoveryOrder::Leave { instance, takes } => (Kind::Leave, instance.0, takes.0),
    };
    v1::RecoveryOrder {
        epoch: epoch.0,
        kind: kind.into(),
        instance,
        takes,
    }
}

/// What a message orders, and under which number.
#[must_use]
pub fn recovery_order(message: &v1::RecoveryOrder) -> Option<(Generation, RecoveryOrder)> {
    use v1::recovery_order::Kind;
    let (instance, takes) = (Generation(message.instance), Generation(message.takes));
    let order = match message.kind() {
        Kind::Unspecified => return None,
        Kind::Absent => RecoveryOrder::Absent,
        Kind::Run => RecoveryOrder::Run { instance, takes },
        Kind::Stop => RecoveryOrder::Stop,
        Kind::Leave => RecoveryOrder::Leave { instance, takes },
    };
    Some((Generation(message.epoch), order))
}

/// The message for what a source says. `point_id` is the point that holds every write, of [`SourceSaid::Shipped`].
#[must_use]
pub fn source_report(epoch: Generation, said: SourceSaid, point_id: &str) -> v1::SourceReport {
    use v1::source_report::Said;
    let said = match said {
        SourceSaid::Running => Said::Running,
        SourceSaid::Held => Said::Held,
        SourceSaid::Shipped => Said::Shipped,
        SourceSaid::Received => Said::Received,
        SourceSaid::Left => Said::Left,
    };
    v1::SourceReport {
        epoch: epoch.0,
        said: said.into(),
        point_id: point_id.to_owned(),
        ..v1::SourceReport::default()
    }
}

/// What a source says, and of which order.
#[must_use]
pub fn source_said(message: &v1::SourceReport) -> Option<(Generation, SourceSaid)> {
    use v1::source_report::Said;
    let said = match message.said() {
        Said::Unspecified => return None,
        Said::Running => SourceSaid::Running,
        Said::Held => SourceSaid::Held,
        Said::Shipped => SourceSaid::Shipped,
        Said::Received => SourceSaid::Received,
        Said::Left => SourceSaid::Left,
    };
    Some((Generation(message.epoch), said))
}

/// The message for what a recovery side says.
#[must_use]
pub fn recovery_report(epoch: Generation, said: RecoverySaid) -> v1::RecoveryReport {
    use v1::recovery_report::Said;
    let said = match said {
        RecoverySaid::Running => Said::Running,
        RecoverySaid::Stopped => Said::Stopped,
        RecoverySaid::Absent => Said::Absent,
        RecoverySaid::Left => Said::Left,
    };
    v1::RecoveryReport {
        epoch: epoch.0,
        said: said.into(),
    }
}

/// What a recovery side says, and of which order.
#[must_use]
pub fn recovery_said(message: &v1::RecoveryReport) -> Option<(Generation, RecoverySaid)> {
    use v1::recovery_report::Said;
    let said = match message.said() {
        Said::Unspecified => return None,
        Said::Running => RecoverySaid::Running,
        Said::Stopped => RecoverySaid::Stopped,
        Said::Absent => RecoverySaid::Absent,
        Said::Left => RecoverySaid::Left,
    };
    Some((Generation(message.epoch), said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_and_every_report_comes_back_as_it_was_sent() {
        let [epoch, a, b] = [Generation(9), Generation(7), Generation(8)];
        for order in [
            SourceOrder::Replicate(a),
            SourceOrder::Run(a),
            SourceOrder::ShipRest(a),
            SourceOrder::Hold,
            SourceOrder::Receive,
            SourceOrder::ReceiveRest,
            SourceOrder::LeaveRunning,
            SourceOrder::LeaveOff,
        ] {
            let message = source_message(epoch, order);
            assert_eq!(source_order(&message), Some((epoch, order)));
        }
        for order in [
            RecoveryOrder::Absent,
            RecoveryOrder::Run {
                instance: a,
                takes: b,
            },
            RecoveryOrder::Stop,
            RecoveryOrder::Leave {
                instance: a,
                takes: b,
            },
        ] {
            let message = recovery_message(epoch, order);
            assert_eq!(recovery_order(&message), Some((epoch, order)));
        }
        for said in [
            SourceSaid::Running,
            SourceSaid::Held,
            SourceSaid::Shipped,
            SourceSaid::Received,
            SourceSaid::Left,
        ] {
            let message = source_report(epoch, said, "point");
            assert_eq!(source_said(&message), Some((epoch, said)));
        }
        for said in [
            RecoverySaid::Running,
            RecoverySaid::Stopped,
            RecoverySaid::Absent,
            RecoverySaid::Left,
        ] {
            let message = recovery_report(epoch, said);
            assert_eq!(recovery_said(&message), Some((epoch, said)));
        }
    }

    #[test]
    fn a_kind_of_a_later_release_orders_nothing() {
        let unknown = v1::SourceOrder {
            epoch: 3,
            kind: 99,
            licence: 3,
        };
        assert_eq!(source_order(&unknown), None);
        let unknown = v1::RecoveryOrder {
            epoch: 3,
            kind: 99,
            ..v1::RecoveryOrder::default()
        };
        assert_eq!(recovery_order(&unknown), None);
    }
}
