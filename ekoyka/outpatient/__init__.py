"""The outpatient clinic: working hours, slots, appointments, the waiting list, notifications."""
