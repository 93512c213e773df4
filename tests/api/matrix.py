"""The matrix: how far each role reaches through everything that can be asked.

Five columns: anonymous, user, dispatcher, doctor, superadmin. A word says what the role gets:

- ``-``     the door is closed, before any SQL;
- ``none``  the door is open, but rows of this kind are never this role's;
- ``own``   rows of one's own dispensary (a user: of one's own record), and no others;
- ``all``   every row of the network;
- ``any``   the answer does not depend on whose row it is.

`test_matrix` asks everything as everybody and compares. Whatever is new in the schema or the routes and has no
line here fails that test.
"""

ROLES = ("ANONYMOUS", "USER", "DISPATCHER", "DOCTOR", "SUPERADMIN")

_CLINICAL = "-    own  none own  all"
_WARD = "-    -    own  own  all"
_DOCTORS = "-    -    -    own  all"
_ADMIN = "-    -    -    -    all"
_ONES_OWN = "-    own  own  own  own"
_SIGNED_IN = "-    any  any  any  any"
_EVERYBODY = "any  any  any  any  any"

_OWN_LOG = "-    own  none none all"

FIELDS = {
    "Query.accessEntries": _OWN_LOG,
    "Query.accessEntry": _OWN_LOG,
    "Query.account": "-    own  own  own  all",
    "Query.appointment": _CLINICAL,
    "Query.appointments": _CLINICAL,
    "Query.appointmentsPerDay": "-    -    -    any  any",
    "Query.freeSlots": "-    all  all  all  all",
    "Query.noShowRate": "-    -    -    any  any",
    "Query.notifications": _ONES_OWN,
    "Query.offers": _CLINICAL,
    "Query.schedule": _DOCTORS,
    "Query.schedules": _DOCTORS,
    "Query.slot": "-    all  all  all  all",
    "Query.slotUtilisation": "-    -    -    any  any",
    "Query.slots": _DOCTORS,
    "Query.timeOff": _DOCTORS,
    "Query.waitingEntries": _CLINICAL,
    "Query.waitingTime": "-    -    -    any  any",
    "Query.accounts": _ADMIN,
    "Query.bed": _WARD,
    "Query.bedOptions": _DOCTORS,
    "Query.beds": _WARD,
    "Query.certificate": _CLINICAL,
    "Query.certificateVerification": _EVERYBODY,
    "Query.certificates": _CLINICAL,
    "Query.dayCalendar": _DOCTORS,
    "Query.dispensaries": "-    own  own  own  all",
    "Query.dispensary": "-    own  own  own  all",
    "Query.me": _SIGNED_IN,
    # By the kind of row: see NODES.
    "Query.node": _SIGNED_IN,
    "Query.nodes": _SIGNED_IN,
    "Query.patient": _CLINICAL,
    "Query.patients": _CLINICAL,
    "Query.reservation": _WARD,
    "Query.reservations": _WARD,
    "Query.room": _WARD,
    "Query.rooms": _WARD,
    "Query.stay": _CLINICAL,
    "Query.stays": _CLINICAL,
    "Mutation.accountBlock": _ADMIN,
    "Mutation.accountCreate": "-    -    -    -    any",
    "Mutation.appointmentArrive": _DOCTORS,
    "Mutation.appointmentBook": _CLINICAL,
    "Mutation.appointmentCancel": _CLINICAL,
    "Mutation.appointmentComplete": _DOCTORS,
    "Mutation.appointmentDelete": _ADMIN,
    "Mutation.appointmentMove": _CLINICAL,
    "Mutation.appointmentNoShow": _DOCTORS,
    "Mutation.appointmentUpdate": _DOCTORS,
    "Mutation.extraHoursAdd": _DOCTORS,
    "Mutation.extraHoursRemove": _DOCTORS,
    "Mutation.notificationRead": _ONES_OWN,
    "Mutation.offerAccept": _CLINICAL,
    "Mutation.offerDecline": _CLINICAL,
    "Mutation.scheduleUpdate": _DOCTORS,
    "Mutation.slotHold": "-    all  all  all  all",
    "Mutation.slotRelease": "-    none none none none",
    "Mutation.slotsGenerate": _DOCTORS,
    "Mutation.timeOffAdd": _DOCTORS,
    "Mutation.timeOffMoveAppointments": _DOCTORS,
    "Mutation.timeOffRemove": _DOCTORS,
    "Mutation.timetableDelete": _DOCTORS,
    "Mutation.timetableSet": _DOCTORS,
    "Mutation.timetableUpdate": _DOCTORS,
    "Mutation.waitingListJoin": _CLINICAL,
    "Mutation.waitingListLeave": _CLINICAL,
    "Mutation.accountResetPassword": _ADMIN,
    "Mutation.accountUnblock": _ADMIN,
    "Mutation.accountUpdate": _SIGNED_IN,
    "Mutation.bedArchive": _ADMIN,
    "Mutation.bedClose": _DOCTORS,
    "Mutation.bedCreate": _ADMIN,
    "Mutation.bedDelete": _ADMIN,
    "Mutation.bedReserve": _WARD,
    "Mutation.bedSetServiceState": _DOCTORS,
    "Mutation.bedUpdate": _DOCTORS,
    "Mutation.certificateAnnul": _DOCTORS,
    "Mutation.certificateIssue": _DOCTORS,
    "Mutation.certificateReprint": _DOCTORS,
    "Mutation.dispensaryArchive": _ADMIN,
    "Mutation.dispensaryCreate": "-    -    -    -    any",
    "Mutation.dispensaryDelete": _ADMIN,
    "Mutation.dispensaryUpdate": _DOCTORS,
    "Mutation.passwordChange": _SIGNED_IN,
    "Mutation.passwordReset": _EVERYBODY,
    "Mutation.patientArchive": _DOCTORS,
    "Mutation.patientLinkAccount": _DOCTORS,
    "Mutation.patientRegister": _DOCTORS,
    "Mutation.patientUpdate": _DOCTORS,
    "Mutation.register": _EVERYBODY,
    "Mutation.reservationRelease": _WARD,
    "Mutation.roleGrant": _ADMIN,
    "Mutation.roleRevoke": _ADMIN,
    "Mutation.roomArchive": _ADMIN,
    "Mutation.roomCreate": _ADMIN,
    "Mutation.roomDelete": _ADMIN,
    "Mutation.roomUpdate": _DOCTORS,
    "Mutation.sessionEnd": "-    own  own  own  all",
    "Mutation.signIn": _EVERYBODY,
    "Mutation.signOut": _EVERYBODY,
    "Mutation.signOutEverywhere": _SIGNED_IN,
    "Mutation.stayCheckIn": _DOCTORS,
    "Mutation.stayCheckOut": _DOCTORS,
    "Mutation.stayCorrect": _DOCTORS,
    "Mutation.stayTransfer": _DOCTORS,
    "Mutation.stayUpdate": _DOCTORS,
    "Mutation.tokenRefresh": _EVERYBODY,
    "Subscription.bedAvailability": _WARD,
    "Subscription.bedChanged": _WARD,
    "Subscription.freeSlots": _SIGNED_IN,
    "Subscription.myAppointments": _SIGNED_IN,
    "Subscription.myNotifications": _SIGNED_IN,
}

# What `node` and `nodes` reach, by the kind of row.
NODES = {
    "AccessEntry": _OWN_LOG,
    "Account": "-    own  own  own  all",
    "Appointment": _CLINICAL,
    "Bed": _WARD,
    "BedAssignment": _CLINICAL,
    "Certificate": _CLINICAL,
    "Dispensary": "-    own  own  own  all",
    "ExtraHours": _DOCTORS,
    "Notification": _ONES_OWN,
    "Offer": _CLINICAL,
    "Patient": _CLINICAL,
    "Reservation": _WARD,
    "Room": _WARD,
    "Schedule": _DOCTORS,
    "Session": "-    own  own  own  all",
    "Slot": "-    all  all  all  all",
    "Stay": _CLINICAL,
    "TimeOff": _DOCTORS,
    "Timetable": _DOCTORS,
    "WaitingEntry": _CLINICAL,
}

# Ids that may name any row, or none, without an answer that tells which: (mutation, input's field), and why.
MAY_NAME_ANYBODY = {
    ("waitingListJoin", "dispensaryId"): "anybody may wait for a visit anywhere",
    ("appointmentBook", "slotId"): "free slots are for anybody",
    ("appointmentMove", "slotId"): "free slots are for anybody",
    ("patientLinkAccount", "accountId"): "a doctor links an account by the id that its holder has told them",
    ("stayCheckIn", "reservationId"): "one that does not hold the bed, whoever's it is, changes nothing",
    ("stayTransfer", "reservationId"): "one that does not hold the bed, whoever's it is, changes nothing",
}

# Each route, and what it answers to whoever knows no secret and comes from elsewhere; None where other tests ask.
ROUTES = {
    "GET /": 307,
    "POST /graphql": None,
    "GET /graphql": 405,
    "WEBSOCKET /graphql": None,
    "POST /auth/token": 400,
    "POST /auth/refresh": 400,
    "POST /auth/revoke": 400,
    # No provider is configured there.
    "GET /auth/oidc/login": 404,
    "GET /auth/oidc/callback": 404,
    "GET /certificates/{name}.pdf": 403,
    "GET /calendars/{name}.ics": 403,
    "GET /verify/{code}": 404,
    "GET /healthz": 200,
    "GET /readyz": 200,
    "GET /metrics": 403,
    "GET /static": 307,
}


def reach(line: str, role: str) -> str:
    """What the line says of the role."""
    return dict(zip(ROLES, line.split(), strict=True))[role]
