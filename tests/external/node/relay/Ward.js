// What a Relay client writes: a refetchable connection, a node's fragment and a subscription.
import { graphql } from 'relay-runtime';

export const rooms = graphql`
  fragment Ward_rooms on Dispensary
  @refetchable(queryName: "WardRoomsPageQuery")
  @argumentDefinitions(count: { type: "Int", defaultValue: 20 }, cursor: { type: "String" }) {
    name
    rooms(first: $count, after: $cursor) @connection(key: "Ward_rooms") {
      edges {
        node {
          id
          number
          ...Ward_room
        }
      }
    }
  }
`;

export const room = graphql`
  fragment Ward_room on Room @refetchable(queryName: "WardRoomQuery") {
    number
    beds(first: 10) {
      edges {
        node {
          label
          status
        }
      }
    }
  }
`;

export const ward = graphql`
  query WardQuery($id: ID!) {
    dispensary(id: $id) {
      ...Ward_rooms
    }
    node(id: $id) {
      id
    }
  }
`;

export const feed = graphql`
  subscription WardSubscription($id: ID!) {
    bedAvailability(dispensaryId: $id) {
      cursor
      counts {
        free
      }
    }
  }
`;
