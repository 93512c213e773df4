// The subset of EKoyka's schema that the benchmark asks for, as a good node developer would write it: resolvers over
// node-postgres, a DataLoader for every edge, one set of loaders for each request.
import DataLoader from "dataloader";
import { pool, rows } from "./database.mjs";

export const typeDefs = `
  scalar DateTime
  scalar Date
  enum StayOrderField { CHECKED_IN_AT CHECKED_OUT_AT }
  enum OrderDirection { ASC DESC }
  input PatientWhere { search: String }
  input StayWhere { dispensaryId: ID open: Boolean from: DateTime until: DateTime }
  input StayOrder { field: StayOrderField! direction: OrderDirection! }
  type PageInfo { hasNextPage: Boolean! }
  type BedCounts { total: Int! free: Int! }
  type Dispensary { id: ID! name: String! address: String! bedCounts: BedCounts! rooms(first: Int): RoomConnection! }
  type DispensaryEdge { node: Dispensary! }
  type DispensaryConnection { edges: [DispensaryEdge!]! }
  type Room { id: ID! number: String! floor: Int sex: String! beds(first: Int): BedConnection! }
  type RoomEdge { node: Room! }
  type RoomConnection { edges: [RoomEdge!]! }
  type Bed { id: ID! label: String! status: String! room: Room! dispensary: Dispensary! currentAssignment: BedAssignment }
  type BedEdge { node: Bed! }
  type BedConnection { edges: [BedEdge!]! }
  type BedAssignment { startedAt: DateTime! endedAt: DateTime stay: Stay! bed: Bed! }
  type Stay {
    id: ID! version: Int! checkedInAt: DateTime! checkedOutAt: DateTime outcome: String diagnosisCode: String plannedCheckOutOn: Date
    patient: Patient! assignments: [BedAssignment!]! currentBed: Bed
  }
  type StayEdge { node: Stay! }
  type StayConnection { edges: [StayEdge!]! pageInfo: PageInfo! }
  type Patient {
    id: ID! recordNumber: String! familyName: String givenName: String patronymic: String birthDate: Date
    stays(first: Int): StayConnection!
  }
  type PatientEdge { node: Patient! }
  type PatientConnection { edges: [PatientEdge!]! pageInfo: PageInfo! }
  type Query {
    dispensary(id: ID!): Dispensary
    dispensaries(first: Int): DispensaryConnection!
    bed(id: ID!): Bed
    patient(id: ID!): Patient
    patients(first: Int, where: PatientWhere): PatientConnection!
    stays(first: Int, where: StayWhere, orderBy: [StayOrder!]): StayConnection!
  }
  input StayCheckInInput { patientId: ID! bedId: ID! }
  type BedOccupied { message: String! }
  union StayCheckInResult = Stay | BedOccupied
  type Mutation { stayCheckIn(input: StayCheckInInput!): StayCheckInResult! }
`;

const toId = (type, key) => Buffer.from(`${type}:${key}`).toString("base64");
const toKey = (id) => Buffer.from(id, "base64").toString().split(":")[1];
const edges = (list) => ({ edges: list.map((node) => ({ node })) });
const page = (list, first) => ({
  ...edges(list.slice(0, first)),
  pageInfo: { hasNextPage: list.length > first },
});

const one = (name, sql) =>
  new DataLoader(async (keys) => {
    const found = new Map((await rows(name, sql, [keys])).map((row) => [row.key ?? row.id, row]));
    return keys.map((key) => found.get(key) ?? null);
  });
const many = (name, sql) =>
  new DataLoader(async (keys) => {
    const found = new Map(keys.map((key) => [key, []]));
    for (const row of await rows(name, sql, [keys])) found.get(row.key).push(row);
    return keys.map((key) => found.get(key));
  });

export const loaders = () => ({
  dispensary: one("dispensary", "SELECT id, name, address FROM dispensary WHERE id = ANY($1)"),
  room: one("room", "SELECT id, number, floor, sex FROM room WHERE id = ANY($1)"),
  bed: one("bed", "SELECT id, label, service_state, room_id, dispensary_id FROM bed WHERE id = ANY($1)"),
  stay: one("stay", "SELECT * FROM stay WHERE id = ANY($1)"),
  patient: one(
    "patient",
    "SELECT id, record_number, family_name, given_name, patronymic, birth_date FROM patient WHERE id = ANY($1)",
  ),
  roomsOf: many(
    "rooms",
    `SELECT dispensary_id AS key, id, number, floor, sex FROM room
     WHERE dispensary_id = ANY($1) AND archived_at IS NULL ORDER BY number_key, id`,
  ),
  bedsOf: many(
    "beds",
    `SELECT room_id AS key, id, label, service_state, room_id, dispensary_id FROM bed
     WHERE room_id = ANY($1) AND archived_at IS NULL ORDER BY label_key, id`,
  ),
  assignmentOf: one(
    "assignment",
    "SELECT bed_id AS key, * FROM bed_assignment WHERE bed_id = ANY($1) AND ended_at IS NULL",
  ),
  reservationOf: one(
    "reservation",
    `SELECT bed_id AS key, id FROM reservation
     WHERE bed_id = ANY($1) AND ended_at IS NULL AND until > now()`,
  ),
  assignmentsOf: many(
    "assignments",
    "SELECT stay_id AS key, * FROM bed_assignment WHERE stay_id = ANY($1) ORDER BY started_at, id",
  ),
  countsOf: one(
    "counts",
    `SELECT b.dispensary_id AS key, count(*)::int AS total, count(*) FILTER (
       WHERE a.id IS NULL AND v.id IS NULL AND b.service_state = 'IN_SERVICE')::int AS free
     FROM bed b
     LEFT JOIN bed_assignment a ON a.bed_id = b.id AND a.ended_at IS NULL
     LEFT JOIN reservation v ON v.bed_id = b.id AND v.ended_at IS NULL AND v.until > now()
     WHERE b.dispensary_id = ANY($1) AND b.archived_at IS NULL GROUP BY b.dispensary_id`,
  ),
});

async function checkIn(_, { input }) {
  const [patient, bed] = [toKey(input.patientId), toKey(input.bedId)];
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const ask = (name, text, values) => client.query({ name, text, values }).then((result) => result.rows[0]);
    const found = await ask("lockBed", "SELECT id, dispensary_id, service_state FROM bed WHERE id = $1 FOR UPDATE", [bed]);
    await ask("lockPatient", "SELECT id FROM patient WHERE id = $1 FOR NO KEY UPDATE", [patient]);
    const taken = await ask(
      "taken",
      `SELECT EXISTS (SELECT FROM bed_assignment WHERE bed_id = $1 AND ended_at IS NULL)
         OR EXISTS (SELECT FROM reservation WHERE bed_id = $1 AND ended_at IS NULL AND until > now())
         OR EXISTS (SELECT FROM stay WHERE patient_id = $2 AND checked_out_at IS NULL) AS taken`,
      [bed, patient],
    );
    if (taken.taken || found.service_state !== "IN_SERVICE") {
      await client.query("ROLLBACK");
      return { __typename: "BedOccupied", message: "The bed is occupied." };
    }
    const stay = await ask(
      "stay_in",
      `INSERT INTO stay (patient_id, dispensary_id, checked_in_at, version)
       VALUES ($1, $2, clock_timestamp(), 1) RETURNING *`,
      [patient, found.dispensary_id],
    );
    await ask(
      "assign",
      "INSERT INTO bed_assignment (stay_id, bed_id, dispensary_id, started_at) VALUES ($1, $2, $3, $4)",
      [stay.id, bed, found.dispensary_id, stay.checked_in_at],
    );
    await ask(
      "log",
      `INSERT INTO access_entry (action, object_type, object_id, patient_id, dispensary_id)
       VALUES ('stay_check_in', 'Stay', $1, $2, $3)`,
      [stay.id, patient, found.dispensary_id],
    );
    await ask(
      "publish",
      `WITH counted AS (
         INSERT INTO feed_topic (topic, last_cursor) VALUES ($1, 1)
         ON CONFLICT (topic) DO UPDATE SET last_cursor = feed_topic.last_cursor + 1 RETURNING last_cursor
       ), written AS (
         INSERT INTO feed_event (topic, cursor, payload, occurred_at)
         SELECT $1, last_cursor, $2::jsonb, clock_timestamp() FROM counted
       )
       SELECT pg_notify('ekoyka', $1 || ' ' || last_cursor) FROM counted`,
      [`beds:${found.dispensary_id}`, JSON.stringify({ bed: Number(bed), change: "CHECKED_IN", status: "OCCUPIED" })],
    );
    await client.query("COMMIT");
    return { __typename: "Stay", ...stay };
  } catch (error) {
    await client.query("ROLLBACK").catch(() => {});
    throw error;
  } finally {
    client.release();
  }
}

export const resolvers = {
  Query: {
    dispensary: (_, { id }, { load }) => load.dispensary.load(toKey(id)),
    dispensaries: async (_, { first = 20 }) =>
      edges(
        await rows(
          "dispensaries",
          "SELECT id, name, address FROM dispensary WHERE archived_at IS NULL ORDER BY name_key, id LIMIT $1",
          [first],
        ),
      ),
    bed: (_, { id }, { load }) => load.bed.load(toKey(id)),
    patient: (_, { id }, { load }) => load.patient.load(toKey(id)),
    patients: async (_, { first = 20, where }) =>
      page(
        await rows(
          "search",
          `SELECT id, record_number, family_name, given_name, patronymic, birth_date FROM patient
           WHERE search @@ $1::text::tsquery AND archived_at IS NULL ORDER BY name_key, id LIMIT $2`,
          [
            where.search.toLowerCase().replaceAll("ё", "е").split(/\s+/).map((word) => `${word}:*`).join(" & "),
            first + 1,
          ],
        ),
        first,
      ),
    stays: async (_, { first = 20, where }) =>
      page(
        await rows(
          "discharged",
          `SELECT * FROM stay WHERE dispensary_id = $1 AND (checked_out_at IS NULL) = $2
             AND checked_out_at > $3 AND checked_in_at < $4
           ORDER BY ended_at DESC, id DESC LIMIT $5`,
          [toKey(where.dispensaryId), where.open, where.from, where.until, first + 1],
        ),
        first,
      ),
  },
  Mutation: { stayCheckIn: checkIn },
  StayCheckInResult: { resolveType: (value) => value.__typename, __resolveType: (value) => value.__typename },
  Dispensary: {
    id: ({ id }) => toId("Dispensary", id),
    rooms: async ({ id }, { first = 20 }, { load }) => edges((await load.roomsOf.load(id)).slice(0, first)),
    bedCounts: ({ id }, _, { load }) => load.countsOf.load(id),
  },
  Room: {
    id: ({ id }) => toId("Room", id),
    beds: async ({ id }, { first = 20 }, { load }) => edges((await load.bedsOf.load(id)).slice(0, first)),
  },
  Bed: {
    id: ({ id }) => toId("Bed", id),
    status: async ({ id, service_state }, _, { load }) => {
      const [assignment, reservation] = await Promise.all([load.assignmentOf.load(id), load.reservationOf.load(id)]);
      if (assignment) return "OCCUPIED";
      if (reservation) return "RESERVED";
      return service_state === "IN_SERVICE" ? "FREE" : service_state;
    },
    room: ({ room_id }, _, { load }) => load.room.load(room_id),
    dispensary: ({ dispensary_id }, _, { load }) => load.dispensary.load(dispensary_id),
    currentAssignment: ({ id }, _, { load }) => load.assignmentOf.load(id),
  },
  BedAssignment: {
    startedAt: ({ started_at }) => started_at.toISOString(),
    endedAt: ({ ended_at }) => ended_at?.toISOString(),
    stay: ({ stay_id }, _, { load }) => load.stay.load(stay_id),
    bed: ({ bed_id }, _, { load }) => load.bed.load(bed_id),
  },
  Stay: {
    id: ({ id }) => toId("Stay", id),
    checkedInAt: ({ checked_in_at }) => checked_in_at.toISOString(),
    checkedOutAt: ({ checked_out_at }) => checked_out_at?.toISOString(),
    diagnosisCode: ({ diagnosis_code }) => diagnosis_code,
    plannedCheckOutOn: ({ planned_check_out_on }) => planned_check_out_on,
    patient: ({ patient_id }, _, { load }) => load.patient.load(patient_id),
    assignments: ({ id }, _, { load }) => load.assignmentsOf.load(id),
    currentBed: async ({ id }, _, { load }) => {
      const open = (await load.assignmentsOf.load(id)).find((row) => row.ended_at === null);
      return open ? load.bed.load(open.bed_id) : null;
    },
  },
  Patient: {
    id: ({ id }) => toId("Patient", id),
    recordNumber: ({ record_number }) => record_number,
    familyName: ({ family_name }) => family_name,
    givenName: ({ given_name }) => given_name,
    birthDate: ({ birth_date }) => birth_date,
    stays: async ({ id }, { first = 20 }) =>
      page(
        await rows(
          "history",
          "SELECT * FROM stay WHERE patient_id = $1 ORDER BY checked_in_at DESC, id DESC LIMIT $2",
          [id, first + 1],
        ),
        first,
      ),
  },
};
