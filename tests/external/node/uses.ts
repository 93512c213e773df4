// A client that takes every outcome of a check-in apart; `tsc --strict` says whether the generated types let it.
import type { CheckInMutation, FreeSubscription, WardQuery } from './__generated__/operations.js';

export function told(result: CheckInMutation): string {
  const outcome = result.stayCheckIn;
  switch (outcome.__typename) {
    case 'Stay':
      return outcome.currentBed?.label ?? outcome.id;
    case 'BedOccupied':
      return `${outcome.occupiedSince} ${outcome.alternatives.map((bed) => bed.label).join()}`;
    default:
      return outcome.message;
  }
}

export const free = (event: FreeSubscription): number => event.bedAvailability.counts.free;

export const beds = (ward: WardQuery): string[] =>
  (ward.dispensary?.rooms?.edges ?? []).flatMap((room) => room.node.beds.edges.map((bed) => bed.node.label));
